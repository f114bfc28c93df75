"""The tree of errors: drawn as it is, and read again out of the text that other engines give."""

import importlib
import pathlib
import pkgutil
import re

import pytest

import models
import models.errors
import pipelines
import transforms
from models.errors import HeadraceError
from models.project.project import ProjectError
from pipelines.runners.failures import EngineError, clear_failures


def tree(kind, depth=0):
    yield depth, kind.__name__
    if kind.__module__ != "pipelines.pubsub_emulator.errors":  # it has a drawing of its own
        for each in kind.__subclasses__():
            if each.__module__.partition(".")[0] in ("models", "transforms", "pipelines"):
                yield from tree(each, depth + 1)


def test_the_tree_is_drawn_as_it_is():
    for package in (models, transforms, pipelines):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            origin = pathlib.Path(importlib.util.find_spec(module.name).origin)
            source = origin.read_text() if origin.suffix == ".py" else ""  # what is compiled has no errors of its own
            if re.search(r"(?m)^class \w+\(.*(Error|Exception)\w*\b.*\):", source):
                importlib.import_module(module.name)
    drawn = re.findall(
        r"(?m)^((?:[│├└─]|    | )*)(\w+(?:Error|Corrupt|Mismatch|Down|Schema|Stop))\b", models.errors.__doc__
    )
    assert sorted((len(bars) // 4, name) for bars, name in drawn) == sorted(tree(HeadraceError))


def test_an_error_is_read_out_of_a_traceback():
    text = "Traceback (most recent call last):\n  File ...\nmodels.project.project.ProjectError: a: wrong [while running 'x']\n"
    with pytest.raises(EngineError, match="^a: wrong$"), clear_failures():
        raise RuntimeError(text)


@pytest.mark.parametrize("error", [RuntimeError("KeyError: 1"), ValueError("ProjectError: x"), ProjectError("a\nb")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, clear_failures():
        raise error
    assert raised.value is error
