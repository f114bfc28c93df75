"""Commands beside this one: those that end by themselves are told of, and all are ended."""

import threading

import pytest

from pipelines.jobs.children import ChildError, Children, ended

pytestmark = pytest.mark.slow


def test_one_that_ends_is_told_with_its_last_words(tmp_path):
    with ended(Children(tmp_path, threading.Event())) as children:
        children.start("checker", "check", str(tmp_path / "nowhere"))
        with pytest.raises(ChildError, match="the checker has ended with 1, see .*nowhere"):
            children.wait_for("checker", lambda: False)


def test_one_that_does_not_get_ready_is_told_and_all_are_ended(tmp_path):
    children = Children(tmp_path, threading.Event())
    with ended(children):
        children.start("broker", "pubsub", "--port", "0")
        children.wait_for("broker", lambda: "until Ctrl-C" in children.said("broker"))
        with pytest.raises(ChildError, match="the broker is not ready after 0.2 s"):
            children.wait_for("broker", lambda: False, seconds=0.2)
        (process,) = children._processes.values()
    assert process.poll() == 0


def test_nothing_is_waited_for_once_it_is_stopped(tmp_path):
    stopped = threading.Event()
    stopped.set()
    Children(tmp_path, stopped).wait_for("nothing", lambda: False)
