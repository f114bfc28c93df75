"""Projects of declarations that stand in a test."""

from models.project.project import parse_project


def declared(text, schema):
    """The project of project.yaml's text and the schema's, which have no fault."""
    project, faults = parse_project(text.encode(), lambda name: schema.encode())
    assert not faults, faults
    return project


def assert_fault(text, schema, old, new, fault):
    """That a fault is named, with its line, where `new` stands in the place of `old`."""
    before, after = text.split(old, 1)
    _, faults = parse_project((before + new + after).encode(), lambda name: schema.encode())
    found = [str(each) for each in faults if fault in str(each)]
    assert found, faults
    assert found[0].startswith("project.yaml:")
