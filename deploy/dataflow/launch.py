"""The Flex Template's main file: its parameters are options of `headrace run`, the project is the image's."""

import os
import sys

from models.redact import guard_output
from pipelines.cli.main import app

if __name__ == "__main__":
    guard_output(sys.argv[1:])
    app(["run", os.environ["HEADRACE_PROJECT"], *sys.argv[1:]])
