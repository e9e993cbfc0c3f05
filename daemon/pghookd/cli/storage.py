"""The commands about the disk: `storage`, and `archive list | drop`.

Never here: work. A command loads the settings, calls one function of operations/storage.py and prints its result.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import datetime as dt
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from pghookd.cli.terminal import (
    DONE,
    NO,
    Group,
    expected_faults,
    fail,
    json_of,
    load,
    say,
    with_config,
    with_json,
)

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)B?", re.IGNORECASE)


class _Size(click.ParamType[int]):
    """A size in bytes, as in 500GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's signature
        """Return the bytes."""
        found = _SIZE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a size such as 500GB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


@click.command()
@click.option(
    "--size",
    type=_Size(),
    metavar="SIZE",
    help="Forecast when the database reaches this size. Default: its disk's.",
)
@with_config
@with_json
def storage(size: int | None, config: Path | None, *, as_json: bool) -> None:
    """Show what each day of the log takes, why it is kept, and when the disk will be full."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import storage as work

        told = asyncio.run(work.storage(settings, size=size))
        if as_json:
            click.echo(json_of(told))
            return
        _tell_days(told["days"], with_end=True)
        say(f"database: {_size(told['database_bytes'])}, growing by {_size(told['daily_bytes'])} a day")
        if told["full_on"]:
            say(f"it reaches {_size(told['limit_bytes'])} on {told['full_on']}", style="yellow")
        elif told["limit_bytes"]:
            say(f"it does not reach {_size(told['limit_bytes'])} in ten years")
        else:
            say("its disk cannot be seen from here: name a limit with --size")


@click.group(cls=Group)
def archive() -> None:
    """List the days in the archive, and drop them."""


@archive.command("list")
@with_config
@with_json
def archive_list(config: Path | None, *, as_json: bool) -> None:
    """List the days in the archive."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import storage as work

        days = asyncio.run(work.archive(settings))
        if as_json:
            click.echo(json_of({"days": days}))
        elif days:
            _tell_days(days, with_end=False)
        else:
            say("the archive is empty")


@archive.command("drop")
@click.argument("date", metavar="DAY", type=click.DateTime(["%Y-%m-%d"]))
@with_config
@with_json
def archive_drop(date: dt.datetime, config: Path | None, *, as_json: bool) -> None:
    """Drop a day of the archive for good. DAY is a date as archive list shows it."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.model.day import day_of
        from pghookd.operations import storage as work

        midnight_us = int(date.replace(tzinfo=dt.UTC).timestamp()) * 1_000_000
        if not asyncio.run(work.drop_archived(settings, day_of(midnight_us))):
            text = f"{date:%Y-%m-%d} is not in the archive"
            fail(NO, text, [text], as_json=as_json)
        if as_json:
            click.echo(json_of({"dropped": f"{date:%Y-%m-%d}"}))
        else:
            say(f"dropped {date:%Y-%m-%d}")
    sys.exit(DONE)


def _tell_days(days: Sequence[dict[str, Any]], *, with_end: bool) -> None:
    for each in days:
        parts = [
            f"{each['date']}  {each['events']:>12,} events {_size(each['event_bytes']):>9}",
            f"{each['attempts']:>12,} attempts {_size(each['attempt_bytes']):>9}",
            f"indexes {_size(each['index_bytes']):>9}",
        ]
        if with_end:
            parts.append(_end(each))
        say("  ".join(parts))


def _end(each: dict[str, Any]) -> str:
    if each["kept_by"]:
        return f"kept: {', '.join(each['kept_by'])}"
    return f"until {each['leaves_on']}" if each["leaves_on"] else "kept for ever"


def _size(count: float) -> str:
    """Return bytes in the largest unit that leaves a number of at least 1."""
    for unit, least in reversed(_UNITS.items()):
        if count >= least and unit:
            return f"{count / least:.1f} {unit}B"
    return f"{count:.0f} B"
