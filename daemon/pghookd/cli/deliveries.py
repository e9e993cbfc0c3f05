"""The command `delivery list`: the deliveries of a site, newest first, in the operator's time zone.

Never here: work. The command loads the settings, calls one function of operations/deliveries.py and prints its result.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from pathlib import Path
from typing import Any, Final

import click

from pghookd.cli.terminal import DONE, NO, Group, expected_faults, json_of, load, say, with_config, with_json

_STYLES: Final = {"delivered": "green", "pending": "yellow", "failed": "red"}


class _Time(click.ParamType[dt.datetime]):
    """A time as operators type it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:  # noqa: ANN401 - click's signature
        """Return the time, in this machine's time zone if it names none."""
        from pghookd.operations.time_of_day import parse_time

        try:
            return parse_time(str(value), dt.datetime.now().astimezone())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(cls=Group)
def delivery() -> None:
    """Look up the deliveries of a site."""


@delivery.command("list")
@click.option("--site", "site_id", required=True, metavar="S", help="The site.")
@click.option("--endpoint", "endpoint_id", type=int, metavar="ID", help="Only to this endpoint.")
@click.option("--subject", metavar="X", help="Only of events with this subject, such as order/1042.")
@click.option("--type", "event_type", metavar="T", help="Only of this type.")
@click.option("--state", type=click.Choice(list(_STYLES)), help="Only in this state.")
@click.option(
    "--since",
    type=_Time(),
    metavar="TIME",
    help="Only from this time on: 9:00, yesterday 17:30, 2h, 3d or a date.",
)
@click.option("--before", metavar="CURSOR", help="Only those after the last one of the page before.")
@click.option("-n", "most", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@with_config
@with_json
def delivery_list(
    *,
    site_id: str,
    endpoint_id: int | None,
    subject: str | None,
    event_type: str | None,
    state: str | None,
    since: dt.datetime | None,
    before: str | None,
    most: int,
    config: Path | None,
    as_json: bool,
) -> None:
    """List the deliveries of a site, newest first, with their state and the next attempt."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations.deliveries import Wanted, list_deliveries

        wanted = Wanted(site_id, endpoint_id, state, event_type, subject, since, before, most)
        rows, why_none = asyncio.run(list_deliveries(settings, wanted))
        if as_json:
            click.echo(json_of({"deliveries": [_as_json(row) for row in rows], "why": why_none}))
        elif why_none is not None:
            say(why_none)
        else:
            for row in rows:
                _tell(row)
            if len(rows) == most:
                say(f"older ones: --before {rows[-1]['cursor']}")
        sys.exit(DONE if rows else NO)


def _tell(row: dict[str, Any]) -> None:
    parts = [_local(row["created_at"]), row["type"], row["subject"], f"to endpoint {row['endpoint_id']}"]
    if row["detail"]:
        parts.append(row["detail"])
    if row["attempts"]:
        answer = " ".join(str(each) for each in (row["last_status"], row["last_error"]) if each is not None)
        parts.append(f"attempt {row['attempts']}: {answer}" if answer else f"attempt {row['attempts']}")
    if row["next_attempt_at"] is not None:
        parts.append(f"next at {_local(row['next_attempt_at'])}")
    parts.append(f"event {row['event_id']}")
    say("  ".join(part for part in parts if part), style=_STYLES[row["state"]], label=row["state"])


def _local(at: dt.datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, dt.datetime) else value for key, value in row.items()}
