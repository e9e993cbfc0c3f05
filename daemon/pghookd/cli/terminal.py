"""Shared by all commands: common options, exit statuses for faults, and printing.

Expected faults end a command with one message and an exit status: 1 the answer is no, 2 usage, 3 no usable database or
schema, 78 settings.

Never here: a command, or a slow import at module level, because `--version` and completion must be quick.
"""

# ruff: noqa: PLC0415 - slow modules are imported when they are needed, see above

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from pghookd.settings.wrong_values import quoted

if TYPE_CHECKING:
    from rich.console import Console

    from pghookd.settings.schema import Settings

DONE: Final = 0
NO: Final = 1
NO_DATABASE: Final = 3
SETTINGS: Final = 78  # EX_CONFIG of sysexits.h

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7e]+")
_MISSING_SCHEMA: Final = frozenset({"3F000", "42P01", "42883", "42703"})

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Group(click.Group):
    """A group whose subgroups can also be called by their plural: `events why` is `event why`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name or, if it is a group, by its plural; None if there is none."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name.endswith("s"):
            singular = super().get_command(ctx, cmd_name[:-1])
            return singular if isinstance(singular, click.Group) else None
        return found


def with_config(command: _Command) -> _Command:
    """Add the option --config to a command."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read settings from this TOML file. Environment (PGHOOKD_SECTION_NAME) and credentials win over it.",
    )(command)


def with_json(command: _Command) -> _Command:
    """Add the option --json to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print only JSON.")(command)


# Settings, faults, words ------------------------------------------------------------------------------------


def load(config: Path | None) -> Settings:
    """Load the settings from the environment, credentials and a file.

    Raises:
        SettingsError: the settings have faults; it lists all of them.
    """
    from pghookd.settings import load

    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return load.load(config, os.environ, Path(folder) if folder else None)


@contextlib.contextmanager
def expected_faults(*, as_json: bool = False) -> Iterator[None]:
    """Turn expected faults into a message and an exit status; other exceptions are bugs and show a traceback."""
    from pghookd.postgres.client import DatabaseAway, DatabaseError, Unfit
    from pghookd.postgres.migrate import SchemaFault
    from pghookd.settings.load import SettingsError

    try:
        yield
    except SettingsError as error:
        fail(SETTINGS, str(error), list(error.faults), as_json=as_json)
    except Unfit as error:
        fail(SETTINGS, str(error), [str(error)], as_json=as_json)
    except SchemaFault as error:
        fail(NO_DATABASE, str(error), list(error.faults), as_json=as_json)
    except DatabaseAway as error:
        text = f"the database cannot be reached: {error}"
        fail(NO_DATABASE, text, [text], as_json=as_json)
    except DatabaseError as error:
        missing = error.sqlstate in _MISSING_SCHEMA
        text = (
            f"{error}: the schema is missing or older than this program; run pghookd migrate"
            if missing
            else str(error)
        )
        fail(NO_DATABASE if missing else NO, text, [text], as_json=as_json)


def fail(status: int, text: str, faults: list[str], *, as_json: bool) -> NoReturn:
    """Print a message and exit with a status."""
    if as_json:
        click.echo(json_of({"status": status, "faults": faults}))
    else:
        _console(stderr=True).print(_harmless(text), style="red", markup=False, soft_wrap=True)
    sys.exit(status)


def json_of(value: object) -> str:
    """Return a value as indented JSON."""
    import orjson

    return _without_controls(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def json_line_of(value: object) -> str:
    """Return a value as JSON on one line."""
    import orjson

    return _without_controls(orjson.dumps(value).decode())


def _without_controls(text: str) -> str:
    """Escape characters that control a terminal, such as U+202E: JSON escapes only C0. They occur only in strings."""
    return _NOT_ASCII.sub(lambda run: "".join(c if c.isprintable() else _escaped(c) for c in run[0]), text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _console(*, stderr: bool = False) -> Console:
    """Return the console for all coloured output: rich honours NO_COLOR and pipes, click does not."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def say(text: str, *, style: str = "", label: str = "") -> None:
    """Print a line to standard output, after a coloured label if there is one."""
    from rich.text import Text

    line = Text.assemble((f"{label:<9} ", style), _harmless(text)) if label else Text(_harmless(text))
    _console().print(line, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line to standard error."""
    _console(stderr=True).print(_harmless(text), style="yellow", soft_wrap=True)


def _harmless(text: str) -> str:
    """Escape unprintable characters of a text, so that it cannot control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def event_id_of(identity: str) -> int:
    """Return the event_id for an event_id or a webhook-id."""
    from pghookd.webhook import envelope

    if identity.isascii() and identity.isdecimal() and len(identity) <= len(str(2**63)):
        return min(int(identity), 2**63 - 1)
    try:
        return envelope.event_id_of(identity)
    except ValueError:
        text = (
            f"{quoted(identity)} is neither an event_id (a number) nor a webhook-id (evt_ and 28 hex digits)."
        )
        raise click.BadParameter(text, param_hint="ID") from None


def secret_of(text: str | None) -> str | None:
    """Return the given secret; `-` reads it from standard input, which keeps it out of `ps`."""
    found = sys.stdin.readline().strip() if text == "-" else text
    if found == "":
        raise click.BadParameter(
            "is empty; give a secret, or - to read it from standard input.", param_hint="--secret"
        )
    return found


def wanted(told: dict[str, Any]) -> Iterator[str]:
    """Yield a line `name: value` for each value that is set."""
    for name, value in told.items():
        if value is None or value is False or value == []:
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield f"{name.replace('_', ' ')}: {'yes' if shown is True else shown}"
