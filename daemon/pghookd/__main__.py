"""`python -m pghookd`, and the command `pghookd`: signals first, then everything that takes long to import."""

from __future__ import annotations

import sys

from pghookd.process import signals


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["run"]:
        signals.hold()
    from pghookd.cli.main import main as command_line  # noqa: PLC0415 - a second of imports, during which signals come

    command_line()


if __name__ == "__main__":
    main()
