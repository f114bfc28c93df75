"""Releases of a project's registered bundles: what is proven first, what the log says then, and what the registry."""

import dataclasses
import functools
import json
import pathlib
import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from models.predictors.booster import ModelError
from models.predictors.bundle import BundleError
from models.predictors.registry import RegistryError, list_versions, register
from models.project.project import load_project
from models.rollout.changes import Told
from models.rollout.records import Canary, Holdout, ReleaseError, digest
from pipelines.cli.main import app
from pipelines.jobs import releasing
from pipelines.jobs.releasing import Desk, changes, move_alias, release, release_promoted, roll_back, told_by
from pipelines.release_store import read_log
from tests.kit.bundles import make_bundle, rewrite
from tests.kit.declared import declared
from tests.kit.nights import SCHEMA, TEXT
from tests.kit.support import ROOT

pytestmark = pytest.mark.slow

TOLD = Told("because", "ann")
EVENT = TEXT + "rollout: {clock: event, lead: 10s}\n"
HOUR_US = 3_600_000_000
NOW_US = 428_000 * HOUR_US  # in October 2018


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A project's folder with three bundles, the first one champion, and a fourth one of other features."""
    folder = tmp_path_factory.mktemp("releasing") / "shops"
    folder.mkdir()
    (folder / "schema.pbtxt").write_text(SCHEMA)
    (folder / "project.yaml").write_text(TEXT)
    project = declared(TEXT, SCHEMA)
    other = declared(TEXT.replace("3D: 3d", "3D: 4d"), SCHEMA)
    for seed, of in enumerate((project, project, project, other)):
        bundle = dataclasses.replace(
            make_bundle(project.model.inputs, seed),
            schema=project.contract.text,
            feature_definitions=of.feature_definitions(),
        )
        register(bundle, "shops", f"sqlite:///{folder}/.headrace/registry.db")
    return folder


@pytest.fixture
def folder(registered, tmp_path):
    shutil.copytree(registered, tmp_path / "shops")
    return tmp_path / "shops"


@pytest.fixture
def desk(folder):
    return desk_of(folder)


def desk_of(folder, text=EVENT, at_us=NOW_US):
    (folder / "project.yaml").write_text(text)
    headrace = folder / ".headrace"
    place = f"sqlite:///{headrace}/releases.db"
    return Desk(load_project(folder), folder, f"sqlite:///{headrace}/registry.db", place, at_us)


def later(desk, hours):
    return dataclasses.replace(desk, at_us=NOW_US + hours * HOUR_US)


def bundles_of(desk):
    return [version.bundle_id for version in list_versions("shops", desk.registry)]


def files_of(desk, number):
    (found,) = [v for v in list_versions("shops", desk.registry) if v.version == number]
    return desk.folder / ".headrace" / "artifacts" / found.run_id / "artifacts" / "bundle"


def test_a_canary_grows_becomes_champion_and_is_rolled_back(desk):
    one, two, three, _ = bundles_of(desk)
    assert release(desk, changes(desk, "2", "5%", entity="card"), TOLD).records[0].champion == one
    for hours, change in enumerate(
        (changes(desk, "2", "50%", ("3",), entity="card"), changes(desk, "2"), None), start=1
    ):
        at = later(desk, hours)
        log = release(at, change, TOLD) if change else roll_back(at, TOLD)
    assert log == read_log(desk.place, desk.project)
    states = [(r.champion, r.canary, r.shadows) for r in log.records]
    assert states == [
        (one, None, ()),
        (one, Canary("card", 500, two), ()),
        (one, Canary("card", 5000, two), (three,)),
        (two, None, (three,)),
        (one, None, (three,)),
    ]
    assert [r.made_at_us for r in log.records] == [NOW_US + h * HOUR_US for h in (0, 0, 1, 2, 3)]
    assert [r.effective_from_us - r.made_at_us for r in log.records[1:]] == [10_000_000] * 4
    assert release(later(desk, 4), changes(desk, "champion", shadows=("none",)), TOLD).records[-1].shadows == ()


def test_what_is_not_said_stays(desk):
    one, two, three, _ = bundles_of(desk)
    release(desk, changes(desk, "1", None, ("2",), "1%", "card", "3"), TOLD)
    new = release(later(desk, 1), changes(desk, "3"), TOLD).records[-1]
    assert (new.champion, new.shadows, new.holdout, new.fallback) == (
        three,
        (two,),
        Holdout("card", 100, "holdout"),
        three,
    )
    ended = changes(desk, "1", None, ("none",), "none", None, "none")
    new = release(later(desk, 2), ended, TOLD).records[-1]
    assert (new.champion, new.shadows, new.holdout, new.fallback) == (one, (), None, None)


def test_a_holdout_is_refused_where_a_decision_is_called_so(desk):
    bands = [band.model_copy(update={"action": "holdout"}) for band in desk.project.decisions]
    assert bands
    other = dataclasses.replace(desk, project=desk.project.model_copy(update={"decisions": bands}))
    with pytest.raises(ReleaseError, match="as one of `decisions` is called: rename that"):
        changes(other, "1", holdout="1%", entity="card")
    changes(other, "1", holdout="none")


def test_thresholds_are_told_one_by_one_and_end_together(desk):
    actions = [band.action for band in desk.project.decisions if band.at_least]
    first = actions[0]
    release(desk, changes(desk, "champion", thresholds=[f"{first}=0.97"]), TOLD)
    new = release(later(desk, 1), changes(desk, "2"), TOLD).records[-1]
    assert new.thresholds == {first: 0.97}
    new = release(later(desk, 2), changes(desk, "2", thresholds=["none"]), TOLD).records[-1]
    assert new.thresholds is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["block"], "is no threshold: write ACTION=SCORE"),
        (["block=high"], "is no threshold: write ACTION=SCORE"),
        (["banish=0.5"], "is no decision of the project; there are: "),
        (["block=nan"], "is a finite number"),
        (["block=-1"], "they fall from decision to decision"),
        (["none", "block=0.5"], "--threshold none stands alone"),
    ],
)
def test_a_threshold_that_cant_be_is_refused(desk, told, message):
    with pytest.raises(ReleaseError, match=message):
        release(desk, changes(desk, "2", thresholds=told), TOLD)
    assert read_log(desk.place, desk.project) is None


def test_what_is_in_effect_already_is_no_release(desk):
    assert release(desk, changes(desk, "champion"), TOLD) is None
    assert read_log(desk.place, desk.project) is None
    release(desk, changes(desk, "2"), TOLD)
    assert release(later(desk, 1), changes(desk, "2"), TOLD) is None
    assert len(read_log(desk.place, desk.project).records) == 2


def test_a_release_is_planned_and_the_registry_waits(desk):
    _, two, _, _ = bundles_of(desk)
    log = release(desk, changes(desk, "2"), TOLD, NOW_US + HOUR_US)
    assert log.in_effect(NOW_US + HOUR_US - 1).champion != log.in_effect(NOW_US + HOUR_US).champion == two
    assert move_alias(desk, log) is None
    assert "champion" in list_versions("shops", desk.registry)[0].aliases
    log = release(later(desk, 2), changes(desk, "3"), TOLD)
    assert move_alias(desk, log).version == 3
    assert list_versions("shops", desk.registry)[2].aliases == ("champion",)
    with pytest.raises(ReleaseError, match="record 3: was made at .* before the one before it"):
        release(desk, changes(desk, "1"), TOLD)


def test_a_release_too_early_is_refused(desk):
    message = r"--from 2018-10-29T08:00:09.999999Z is too early: .* takes effect from 2018-10-29T08:00:10.000000Z on"
    with pytest.raises(ReleaseError, match=message):
        release(desk, changes(desk, "2"), TOLD, NOW_US + 9_999_999)
    assert read_log(desk.place, desk.project) is None
    assert len(release(desk, changes(desk, "2"), TOLD, NOW_US + 10_000_000).records) == 2


def test_a_bundle_of_other_features_is_refused_with_what_to_do(desk):
    for change in (changes(desk, "4"), changes(desk, "4", "5%", entity="card"), changes(desk, "1", shadows=("4",))):
        with pytest.raises(ReleaseError, match=r"shops 4 \(bundle .*\) does not fit .*: `headrace train .*` makes one"):
            release(desk, change, TOLD)
    assert read_log(desk.place, desk.project) is None


def test_a_damaged_bundle_is_refused(desk):
    model = files_of(desk, 2) / "model.ubj"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model.ubj: is "):
        release(desk, changes(desk, "2"), TOLD)
    assert read_log(desk.place, desk.project) is None


def test_a_bundle_with_other_golden_scores_is_refused(desk):
    golden = files_of(desk, 2) / "golden.json"
    rewrite(golden.parent, golden.name, re.sub(rb'("scores": \[)[0-9.]+', rb"\g<1>0.123", golden.read_bytes()))
    with pytest.raises(ModelError):
        release(desk, changes(desk, "2"), TOLD)
    assert read_log(desk.place, desk.project) is None


def test_a_rollback_is_to_a_bundle_that_scores(desk):
    with pytest.raises(ReleaseError, match="nothing was before what is in effect"):
        roll_back(desk, TOLD)
    log = release(desk, changes(desk, "2"), TOLD)
    (files_of(desk, 1) / "model.ubj").unlink()
    with pytest.raises(BundleError, match="model.ubj: no such file"):
        roll_back(later(desk, 1), TOLD)
    assert read_log(desk.place, desk.project) == log


def test_a_release_that_another_command_precedes_is_refused(desk, monkeypatch):
    log = release(desk, changes(desk, "2"), TOLD)
    change = changes(desk, "1")

    def meanwhile(*_, **options):
        monkeypatch.undo()
        release(later(desk, 1), changes(desk, "3"), Told("quick", "bo"))

    monkeypatch.setattr(releasing, "prove", meanwhile)
    with pytest.raises(ReleaseError, match="another release was made meanwhile: record 2, by bo"):
        release(later(desk, 1), change, TOLD)
    assert len(read_log(desk.place, desk.project).records) == len(log.records) + 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("9",), RegistryError, "has no version or alias '9'; there are: 1 champion, 2, 3, 4 challenger"),
        (("1", None, ("x",)), RegistryError, "has no version or alias 'x'"),
        (("2", "5"), ReleaseError, "'5' is no share"),
        (("2", "5%"), ReleaseError, "say with --entity by whose keys the share is taken; the project has card, shop"),
        (("2", "5%", (), None, "client"), ReleaseError, "--entity 'client' is no entity of the project"),
        (("2", None, (), None, "card"), ReleaseError, "--entity says by which keys"),
        (("2", None, ("3", "none")), ReleaseError, "--shadow none stands alone"),
    ],
)
def test_what_cant_be_asked_for_is_refused(desk, arguments, error, message):
    with pytest.raises(error, match=message):
        changes(desk, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1", "5%", (), None, "card"), "is champion and challenger"),
        (("2", None, ("2",)), "a shadow comes twice, or is champion"),
        (("2", None, ("3", "3")), "a shadow comes twice"),
    ],
)
def test_a_state_that_cant_be_is_refused(desk, arguments, message):
    with pytest.raises(ReleaseError, match=message):
        release(desk, changes(desk, *arguments), TOLD)


def test_the_clock_is_the_declared_one(folder):
    with pytest.raises(ReleaseError, match="the log's clock is event time .* say --at TIME"):
        release(desk_of(folder, at_us=None), changes(desk_of(folder), "2"), TOLD)
    wall = desk_of(folder, TEXT)
    with pytest.raises(ReleaseError, match="--at is for a log whose clock is event time"):
        release(wall, changes(wall, "2"), TOLD)
    wall = dataclasses.replace(wall, at_us=None)
    new = release(wall, changes(wall, "2"), TOLD).records[-1]
    assert new.effective_from_us - new.made_at_us == 6_000_000  # the lead, and a second to write it
    with pytest.raises(
        ReleaseError, match=r"was begun with clock wall and lead 5s, and project.yaml declares .* event"
    ):
        release(desk_of(folder), changes(wall, "1"), TOLD)


@pytest.mark.parametrize(("text", "at_us"), [(TEXT, None), (EVENT, NOW_US + HOUR_US)])
def test_a_training_that_promotes_adds_to_a_log_that_is_there(folder, text, at_us, monkeypatch):
    monkeypatch.delenv("HEADRACE_RELEASES", raising=False)
    desk = desk_of(folder, text, None if text == TEXT else NOW_US)
    promoted = functools.partial(release_promoted, desk.project, folder, desk.registry)
    assert promoted(3, "trained") is None
    assert read_log(desk.place, desk.project) is None
    release(desk, changes(desk, "2"), TOLD)
    if at_us is not None:
        with pytest.raises(
            ReleaseError, match="version 3 is not in the release log, .*: `headrace promote .* 3 --at TIME`"
        ):
            promoted(3, "trained")
    for records in (3, 3):  # done again, it adds nothing
        promoted(3, "trained", NOW_US + HOUR_US)
        log = read_log(desk.place, desk.project)
        assert (len(log.records), log.records[-1].champion) == (records, bundles_of(desk)[2])
    if at_us is not None:
        assert log.records[-1].made_at_us == at_us


def test_what_is_told_holds_no_secret(monkeypatch):
    assert told_by("why", "ann", "bo", "c-1") == Told("why", "ann", "bo", "c-1")
    monkeypatch.setenv("LOGNAME", "cy")
    assert told_by("why", None).author == "cy"
    for texts in (("password=hunter22", "ann"), ("why", "https://u:hunter22@host"), ("why", "ann", "token=hunter22")):
        with pytest.raises(ReleaseError, match="holds what looks like a secret") as error:
            told_by(*texts)
        assert "hunter22" not in str(error.value)
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("no user")))
    with pytest.raises(ReleaseError, match="say --author NAME"):
        told_by("why", None)


def headrace(*args, code=0):
    """What a command prints."""
    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.delenv("HEADRACE_REGISTRY", raising=False)
    (folder / "project.yaml").write_text(EVENT)
    one, two, three, _ = bundles_of(desk_of(folder))
    assert headrace("releases", folder) == "shops: no release yet: runs take the registry's champion\n"
    said = headrace(
        *("release", folder, 2, "--canary", "5%", "--entity", "card", "--shadow", 3, "--reason", "try it"),
        *("--at", "2018-10-29", "--from", "2018-10-30", "--approver", "bo", "--change-id", "c-7"),
    )
    assert said == (
        f"shops: release 1 from 2018-10-30T00:00:00Z: champion 1 ({one}), canary 2 ({two}) with 5% of card, "
        f"shadows 3 ({three})\nthe registry's champion stays as it is, as this is for later: "
        "runs without --releases take that\n"
    )
    said = headrace("promote", folder, 2, "--at", "2018-10-29T12:00:00")
    assert said == (
        f"shops: release 2 from 2018-10-29T12:00:10Z: champion 2 ({two})\n"
        f"release 1 still takes effect from 2018-10-30T00:00:00Z: champion 1 ({one})\nshops: version 2 is champion\n"
    )
    assert headrace("promote", folder, 2, "--at", "2018-10-29T13:00:00") == "shops: version 2 is champion\n"
    said = headrace("rollback", folder, "--reason", "bad", "--at", "2018-10-29T14:00:00")
    assert said.startswith(f"shops: release 3 from 2018-10-29T14:00:10Z: champion 1 ({one})\n")
    assert said.endswith("shops: version 1 is champion\n")
    assert list_versions("shops", desk_of(folder).registry)[0].aliases == ("champion",)

    log = read_log(desk_of(folder).place, load_project(folder))
    last = digest(log.records[-1])
    told = headrace("releases", folder)
    assert f"release 1  from 2018-10-30T00:00:00Z  {digest(log.records[1])[:12]}\n" in told
    assert "  ann, approved by bo, change c-7: try it\n" in told
    assert told.endswith(
        f"4 records by the clock event, each follows from the one before; the last one's hash is {last}\n"
    )
    path = tmp_path / "log.jsonl"
    assert headrace("releases", folder, "--export", path).startswith(f"4 records in {path}, each follows from")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for name in ("project.yaml", "schema.pbtxt"):
        shutil.copy(folder / name, elsewhere / name)
    bare = headrace("releases", elsewhere, "--releases", path)  # without the registry, by bundles alone
    assert bare == re.sub(r"\d \((\w{16})\)", r"\1", told)
    shown = headrace("releases", folder, "--json")
    assert [record["champion"] for record in json.loads(shown)["records"]] == [one, one, two, one]


def test_the_commands_of_the_page_run_as_printed(folder):
    """In another folder, and by the keys of the entity that is there."""
    page = (ROOT / "docs" / "releases.md").read_text()
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    said = []
    for line in block.replace("my_project", shlex.quote(str(folder))).replace("customer", "card").splitlines():
        name, *args = shlex.split(line, comments=True)
        assert name == "headrace"
        said.append(headrace(*args))
    log = read_log(desk_of(folder, TEXT, None).place, load_project(folder))
    assert len(said) == len(log.records) == 5
    one, two, _, _ = bundles_of(desk_of(folder, TEXT, None))
    assert [r.champion for r in log.records] == [one, one, one, two, one]
    assert [r.canary.per_10000 if r.canary else None for r in log.records] == [None, 500, 5000, None, None]
    shown = [line.split("  ")[0] for line in said[-1].splitlines() if line.startswith("release ")]
    assert shown == [f"release {number}" for number in range(5)]


def test_a_registry_that_is_a_server_needs_a_place_for_the_log(folder, monkeypatch):
    server = "http://127.0.0.1:23999"
    for args in (("release", folder, 2, "--reason", "x"), ("rollback", folder, "--reason", "x"), ("releases", folder)):
        assert "say with --releases which database" in headrace(*args, "--registry", server, code=1)
    monkeypatch.setattr("pipelines.prechecks.find", lambda *_: None)
    monkeypatch.setattr("models.predictors.registry.find", lambda *_: list_versions("shops", place)[1])
    monkeypatch.setattr("models.predictors.registry.set_alias", lambda *_: 2)
    place = desk_of(folder, TEXT, None).registry
    said = headrace("promote", folder, 2, "--registry", server)
    assert (
        said == "no release log: --releases names one, for a registry that is a server\nshops: version 2 is champion\n"
    )


def test_a_file_is_no_place_to_write_to(folder):
    args = ("--reason", "x", "--releases", "log.jsonl", "--at", "2018-10-29")
    assert "releases are written to a database" in headrace("rollback", folder, *args, code=1)
    assert not pathlib.Path("log.jsonl").exists()
