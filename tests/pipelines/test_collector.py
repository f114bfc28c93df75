import gc
import subprocess
import sys

import pytest

from pipelines.collector import work_as_usual
from pipelines.runners import DIRECT, make_pipeline


def test_a_process_that_told_nothing_keeps_its_collector_as_it_is():
    before = gc.get_threshold(), gc.get_freeze_count()
    work_as_usual()
    make_pipeline(DIRECT)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


@pytest.mark.parametrize("makes", ["work_as_usual()", "make_pipeline(DIRECT)"])
def test_the_collector_rests_until_the_graph_is_made(makes):
    code = f"""
import gc
usual = gc.get_threshold()
from pipelines.collector import rest_while_loading, work_as_usual
rest_while_loading()
assert gc.get_threshold() != usual
from pipelines.runners import DIRECT, make_pipeline
{makes}
assert gc.get_threshold() == usual and gc.isenabled() and gc.get_freeze_count() > 1000
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
