"""The installed command."""

import pathlib
import sys

HEADRACE = pathlib.Path(sys.executable).parent / "headrace"
