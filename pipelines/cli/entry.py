"""The console script. It imports nothing at first, so that Ctrl-C is heard politely from the beginning."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; 130 is the exit code of one that was interrupted while it was loaded."""
    try:
        from pipelines.collector import rest_while_loading

        rest_while_loading()
        from pipelines.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
