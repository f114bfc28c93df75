"""Versions are numbered, checked by digest and never changed; a bundle runs with a compatible schema only."""

import hashlib
import pathlib
import shutil

import pytest

from models.project.contract import Contract, SchemaError
from models.project.project import load_project
from models.schemas import (
    SchemaMismatch,
    VersionError,
    check_against_bundle,
    field_needs,
    list_versions,
    read_schema,
    register,
    schema_digest,
)
from tests.kit.support import CARD_FRAUD


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(CARD_FRAUD, tmp_path / "project")
    return tmp_path / "project"


def edit(folder: pathlib.Path, old: str, new: str) -> None:
    path = folder / "schema.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def register_current(folder, **options):
    project = load_project(folder)
    return register(folder, project.contract, field_needs(project), **options)


def test_comments_and_white_space_do_not_count_in_a_digest():
    plain = b'feature { name: "a" type: INT presence { min_fraction: 1.0 } }'
    spread = b'# a comment\nfeature {\n\n name:\t"a"  # here too\n type: INT,\n presence: <min_fraction: 1>\n}\n'
    assert schema_digest(plain) == schema_digest(spread)
    # Field 1 of the schema, 16 bytes: its field 1 "a", its field 6 INT, and its field 14 with the double 1.0 in field 1.
    canonical = bytes.fromhex("0a100a01613002720909000000000000f03f")
    assert schema_digest(plain) == hashlib.sha256(canonical).hexdigest()
    others = [
        b'feature { name: "b" type: INT presence { min_fraction: 1.0 } }',
        b'feature { name: "a" type: FLOAT presence { min_fraction: 1.0 } }',
        b'feature { name: "a" type: INT }',
        plain + b'feature { name: "b" type: INT }',
        b'feature { name: "b" type: INT }' + plain,
    ]
    assert len({schema_digest(text) for text in [plain, *others]}) == 6


def test_versions_are_numbered_and_the_same_schema_keeps_its_own(folder):
    assert list_versions(folder) == []
    first, changes = register_current(folder)
    assert (first.number, changes) == (1, [])
    edit(folder, "feature {", "# a comment\nfeature {")
    assert register_current(folder)[0].number == 1
    edit(folder, "max: 1000000.0", "max: 2000000.0")
    second, changes = register_current(folder)
    assert second.number == 2
    assert [change.what for change in changes] == ["maximum 1000000.0 -> 2000000.0"]
    assert sorted(path.name for path in (folder / "schemas").iterdir()) == ["0001.pbtxt", "0002.pbtxt"]
    assert [(v.number, v.digest) for v in list_versions(folder)] == [(1, first.digest), (2, second.digest)]
    assert len({first.digest, second.digest}) == 2
    # An earlier one, taken from its version, is no new version.
    shutil.copyfile(folder / "schemas" / "0001.pbtxt", folder / "schema.pbtxt")
    assert register_current(folder)[0].number == 1


def test_a_breaking_schema_is_registered_only_if_that_is_allowed(folder):
    register_current(folder)
    edit(folder, "max: 1000000.0", "max: 1000.0")
    with pytest.raises(VersionError, match=r"(?s)version 1; --allow-breaking.*old events above 1000.0"):
        register_current(folder)
    assert len(list_versions(folder)) == 1
    assert register_current(folder, allow_breaking=True)[0].number == 2
    text = (folder / "schemas" / "0002.pbtxt").read_text()
    assert text.count("# headrace schema, version") == 1


def test_a_version_that_was_changed_or_lost_is_refused(folder):
    register_current(folder)
    edit(folder, "max: 1000000.0", "max: 2000000.0")
    register_current(folder)
    path = folder / "schemas" / "0002.pbtxt"
    good = path.read_text()
    for wrong, said in (
        (good.replace("2000000.0", "3000000.0"), "was changed after it was registered"),
        (good.replace("version 2", "version 3"), "was changed after it was registered"),
        (good.partition("\n")[2], "was changed after it was registered"),
        (good[:-40], "not a TensorFlow Metadata schema"),
        ("# " + "x" * (1 << 20) + "\n" + good, "larger than 1048576 bytes"),
    ):
        path.write_text(wrong)
        with pytest.raises(VersionError, match=f"0002.pbtxt: .*{said}"):
            list_versions(folder)
    path.write_text(good)
    (folder / "schemas" / "0001.pbtxt").unlink()
    with pytest.raises(VersionError, match=r"0001.pbtxt: is missing"):
        list_versions(folder)


def test_two_that_register_at_once_do_not_write_over_each_other(folder, monkeypatch):
    import models.schemas.versions as versions

    (folder / "schemas").mkdir()
    (folder / "schemas" / "0001.pbtxt").write_bytes(b"another's")
    monkeypatch.setattr(versions, "list_versions", lambda folder: [])
    with pytest.raises(VersionError, match="somebody else"):
        register_current(folder)
    assert [path.read_bytes() for path in (folder / "schemas").iterdir()] == [b"another's"]


def test_files_that_are_no_schema_are_named(tmp_path):
    with pytest.raises(SchemaError, match="nix.pbtxt: no such file"):
        read_schema(tmp_path / "nix.pbtxt")
    (tmp_path / "two.pbtxt").write_text('feature { name: "a" } feature { name: "b" }')
    with pytest.raises(SchemaError) as raised:
        read_schema(tmp_path / "two.pbtxt")
    assert [line.count("two.pbtxt: field") for line in str(raised.value).splitlines()] == [1, 1]


def test_a_bundle_runs_with_its_own_schema_and_with_compatible_ones(folder):
    trained = (folder / "schema.pbtxt").read_bytes()
    check_against_bundle(load_project(folder), folder, trained)
    edit(folder, "feature {", "# another comment\nfeature {")
    check_against_bundle(load_project(folder), folder, trained)
    edit(folder, "max: 1000000.0", "max: 2000000.0")
    edit(folder, "feature {", 'feature { name: "MERCHANT" type: BYTES }\nfeature {')
    check_against_bundle(load_project(folder), folder, trained)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max: 1000000.0", "max: 1000.0", "TX_AMOUNT: maximum 1000000.0 -> 1000.0"),
        ('"TX_AMOUNT"\n  type: FLOAT', '"TX_AMOUNT"\n  type: INT', "TX_AMOUNT: type number -> whole number"),
        (
            'TX_AMOUNT"\n  type: FLOAT\n  presence { min_fraction: 1.0 }',
            'TX_AMOUNT"\n  type: FLOAT',
            "TX_AMOUNT: required -> optional: may be missing now, and is needed by a model input",
        ),
    ],
)
def test_a_bundle_does_not_run_with_an_incompatible_schema(folder, old, new, said):
    trained = (folder / "schema.pbtxt").read_bytes()
    edit(folder, old, new)
    if "type: INT" in new:  # a number with a minimum of its own kind
        edit(folder, "float_domain { min: 0.0 max: 1000000.0 }", "int_domain { min: 0 max: 1000000 }")
    with pytest.raises(SchemaMismatch) as raised:
        check_against_bundle(load_project(folder), folder, trained)
    assert said in str(raised.value)
    assert "train again" in str(raised.value)


def test_where_versions_are_kept_an_unknown_schema_is_refused(folder):
    trained = (folder / "schema.pbtxt").read_bytes()
    register_current(folder)
    edit(folder, "max: 1000000.0", "max: 2000000.0")
    with pytest.raises(SchemaMismatch, match=r"is none of the 1 versions .*: headrace schema register"):
        check_against_bundle(load_project(folder), folder, trained)
    register_current(folder)
    check_against_bundle(load_project(folder), folder, trained)
    assert Contract.parse(trained).fields.keys() == load_project(folder).contract.fields.keys()
