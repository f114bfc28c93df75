"""docs/keys.md tells every key of project.yaml, and the parts of a schema that are read."""

import re

import pytest

from models.project.contract import Contract
from models.project.keys import DECLARED_AT, WHAT, reference
from tests.kit.support import ROOT

PAGE = (ROOT / "docs" / "keys.md").read_text()
PARTS = re.findall(r"^\| `(\w+ (?:\{.*\}|: ?.*|.*))` \|", PAGE[PAGE.index("# Parts of schema.pbtxt") :], re.MULTILINE)


def test_the_page_is_of_the_code():
    assert "\n".join(reference()).rstrip() in PAGE


def test_every_key_is_told_and_nothing_else():
    keys = {
        ".".join([*map(str, place), field.alias or name])
        for place, declared in DECLARED_AT.items()
        for name, field in declared.model_fields.items()
    }
    assert set(WHAT) == keys


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_schema_that_is_told_is_read(part):
    kind = re.search(r"INT|FLOAT|BYTES", next(line for line in PAGE.splitlines() if f"`{part}`" in line).split("|")[2])[
        0
    ]
    text = f'feature {{ name: "x" type: {kind} {part} }} string_domain {{ name: "countries" value: "DE" }}'
    contract, faults = Contract.read(text.encode())
    assert contract is not None
    assert faults == []


def test_there_are_parts():
    assert len(PARTS) >= 10
