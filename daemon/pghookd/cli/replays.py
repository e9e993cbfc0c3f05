"""The commands about replays: `replay`, a dry run without `--go`, and `replay pause | resume | cancel`.

Never here: work. A command loads the settings, calls functions of operations/replays.py and prints their results.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pghookd.cli.terminal import (
    Group,
    event_id_of,
    expected_faults,
    json_of,
    load,
    say,
    with_config,
    with_json,
)

if TYPE_CHECKING:
    from pghookd.settings.schema import Settings


@click.group(cls=Group, invoke_without_command=True)
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="ID",
    help="Only this event: an event_id or a webhook-id (repeatable).",
)
@click.option("--endpoint", "endpoint_id", type=int, metavar="ID", help="Only to this endpoint.")
@click.option("--site", "site_id", metavar="S", help="Only events of this site.")
@click.option("--type", "types", multiple=True, metavar="T", help="Only events of this type (repeatable).")
@click.option(
    "--since", metavar="T", help="Only events from this time on: a UTC time, or an age such as 2h or 3d."
)
@click.option("--until", metavar="T", help="Only events before this time, in the same formats.")
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="S",
    help="dead (the default), delivered or missed (repeatable).",
)
@click.option("--rate", "rate_per_s", type=float, metavar="N", help="Deliveries a second. Default: 100.")
@click.option("--go", is_flag=True, help="Start the replay. Without this option it is only counted.")
@with_config
@with_json
@click.pass_context
def replay(
    context: click.Context,
    /,
    *,
    events: tuple[str, ...],
    go: bool,
    config: Path | None,
    as_json: bool,
    **conditions: Any,  # noqa: ANN401 - the options of the same names
) -> None:
    """Redeliver failed, delivered or missed events. Without --go, only counts them."""
    given = bool(events) or go or any(value not in (None, ()) for value in conditions.values())
    if context.invoked_subcommand is not None:
        if given:
            raise click.UsageError(f"{context.invoked_subcommand} takes a replay's ID and no conditions.")
        return
    with expected_faults(as_json=as_json):
        told, settings = _begin([event_id_of(each) for each in events], conditions, config, go=go)
        if as_json:
            click.echo(json_of(told))
            return
        duration = f"{told['duration_s']:.0f} s at {told['rate_per_s']:g} a second"
        whom = "1 endpoint" if told["endpoints"] == 1 else f"{told['endpoints']} endpoints"
        say(f"{told['deliveries']} deliveries to {whom}, {duration}")
        if "replay_id" in told:
            _watch(settings, told)
        elif told["deliveries"]:
            say("This was a dry run; --go starts the replay.")


def _begin(
    event_ids: list[int], conditions: dict[str, Any], config: Path | None, *, go: bool
) -> tuple[dict[str, Any], Settings]:
    settings = load(config)
    from pghookd.operations import replays

    wish = replays.Wish(event_ids=event_ids, **conditions)
    with _senseless_is_usage():
        told = asyncio.run(replays.plan(settings, wish))
        if go and told["deliveries"]:
            told["replay_id"] = asyncio.run(replays.start(settings, wish))
    return told, settings


@contextlib.contextmanager
def _senseless_is_usage() -> Iterator[None]:
    """Report values that Postgres rejects as invalid (SQLSTATE class 22) as usage errors."""
    from pghookd.postgres.client import DatabaseError

    try:
        yield
    except DatabaseError as error:
        if error.sqlstate.startswith("22"):
            raise click.UsageError(str(error)) from None
        raise


def _watch(settings: Settings, told: dict[str, Any]) -> None:
    """Show a progress bar until the replay ends or is paused; Ctrl-C ends only the display."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pghookd.operations import replays

    number = told["replay_id"]
    parts = (TextColumn(f"replay {number}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last: dict[str, Any] = {}
    try:
        with Progress(*parts) as bar:
            task = bar.add_task("", total=told["deliveries"])

            def show(row: dict[str, Any]) -> None:
                bar.update(task, completed=row.get("done", 0))

            last = asyncio.run(replays.follow(settings, number, show))
    except KeyboardInterrupt:
        say(f"replay {number} continues; pghookd replay pause {number} pauses it")
        return
    say(f"replay {number} is {last['state']}: {last.get('done', 0)} deliveries queued")


def _act(what: str, replay_id: int, config: Path | None, *, as_json: bool) -> None:
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import replays

        asyncio.run(replays.act(settings, what, replay_id))
        if as_json:
            click.echo(json_of({"replay_id": replay_id, "what": what}))


@replay.command("pause")
@click.argument("replay_id", type=int, metavar="ID")
@with_config
@with_json
def replay_pause(replay_id: int, config: Path | None, *, as_json: bool) -> None:
    """Pause a replay; requests in flight finish."""
    _act("pause", replay_id, config, as_json=as_json)


@replay.command("resume")
@click.argument("replay_id", type=int, metavar="ID")
@with_config
@with_json
def replay_resume(replay_id: int, config: Path | None, *, as_json: bool) -> None:
    """Resume a paused replay where it stopped."""
    _act("resume", replay_id, config, as_json=as_json)


@replay.command("cancel")
@click.argument("replay_id", type=int, metavar="ID")
@with_config
@with_json
def replay_cancel(replay_id: int, config: Path | None, *, as_json: bool) -> None:
    """Cancel a replay; requests in flight finish."""
    _act("cancel", replay_id, config, as_json=as_json)
