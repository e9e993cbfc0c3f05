"""The commands about events: `event why`, `event show` and `event unclaimed`.

Never here: work. A command loads the settings, calls one function of operations/endpoints.py and prints its result.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import click

from pghookd.cli.terminal import (
    DONE,
    NO,
    Group,
    event_id_of,
    expected_faults,
    fail,
    json_of,
    load,
    say,
    wanted,
    with_config,
    with_json,
)

_PHASES: Final = {
    "dns": "resolved",
    "connect": "connected",
    "tls": "TLS",
    "sent": "sent",
    "headers": "headers",
    "body": "body",
}


@click.group(cls=Group)
def event() -> None:
    """Look up events and their deliveries."""


@event.command("why")
@click.argument("identity", metavar="ID")
@with_config
@with_json
def event_why(identity: str, config: Path | None, *, as_json: bool) -> None:
    """Explain why each endpoint received an event or did not. ID is an event_id or a webhook-id."""
    event_id = event_id_of(identity)
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        steps = asyncio.run(endpoints.explain(settings, event_id, identity))
        if as_json:
            click.echo(json_of({"event_id": event_id, "steps": steps}))
        else:
            for step in steps:
                whom = "event" if step["endpoint_id"] is None else f"endpoint {step['endpoint_id']}"
                text = "  ".join(filter(None, (step["at"], f"{whom}: {step['detail']}")))
                say(text, style="bold", label=step["what"])
        sys.exit(NO if steps[0]["what"] == "unknown" else DONE)


@event.command("show")
@click.argument("identity", metavar="ID|SITE")
@click.argument("subject", metavar="[SUBJECT]", required=False)
@click.option("--payload", is_flag=True, help="Include the payload, which may contain personal data.")
@click.option(
    "--answer",
    "answers",
    is_flag=True,
    help="Include the answers of receivers, as text, and headers of failed ones.",
)
@with_config
@with_json
def event_show(
    identity: str, subject: str | None, config: Path | None, *, payload: bool, answers: bool, as_json: bool
) -> None:
    """Show an event, its deliveries and every attempt. ID is an event_id or a webhook-id.

    With a site and a subject such as order/1042, show the newest event of that subject and name the earlier ones.
    """
    event_id = event_id_of(identity) if subject is None else 0
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        earlier: list[int] = []
        if subject is not None:
            found = asyncio.run(endpoints.find_events(settings, identity, subject))
            if not found:
                text = f"site {identity} has no event with the subject {subject}"
                fail(NO, text, [text], as_json=as_json)
            event_id, *earlier = found
            identity = str(event_id)
        asked = endpoints.show_event(settings, event_id, identity, payload=payload, answers=answers)
        told = asyncio.run(asked)
        if isinstance(told, str):
            fail(NO, told, [told], as_json=as_json)
        if earlier:
            told["earlier"] = earlier
        if as_json:
            click.echo(json_of(told))
        else:
            _tell(told)


@event.command("unclaimed")
@click.option(
    "--days", type=click.IntRange(1, 400), default=7, show_default=True, help="Of so many days, with today."
)
@click.option(
    "-n", "most", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many names."
)
@with_config
@with_json
def event_unclaimed(days: int, most: int, config: Path | None, *, as_json: bool) -> None:
    """List unknown sites and types of events that nobody took, with the nearest known name."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import deliveries

        rows = asyncio.run(deliveries.list_unclaimed(settings, days, most))
        if as_json:
            click.echo(json_of({"unclaimed": rows}))
            return
        for row in rows:
            nearest = f", the nearest known is {row['nearest']}" if row["nearest"] else ""
            say(f"{row['day']}  {row['what']} {row['name']}: {row['events']} events{nearest}")
        if not rows:
            say("no event of an unknown site or type")


def _tell(told: dict[str, Any]) -> None:
    deliveries, attempts = told.pop("deliveries"), told.pop("attempts")
    payload, earlier = told.pop("payload", None), told.pop("earlier", ())
    for line in wanted(told):
        say(line)
    if payload is not None:
        say(f"payload: {json_of(payload)}")
    for each in deliveries:
        again = f", next attempt at {each['next_attempt_at']}" if each["next_attempt_at"] else ""
        reason = f" ({each['reason']})" if each["reason"] else ""
        text = f"endpoint {each['endpoint_id']}{reason}, {each['attempts']} attempts{again}"
        say(text, style="bold", label=each["state"])
    for each in attempts:
        answer = " ".join(str(x) for x in (each["outcome"], each["status"], each["error"]) if x is not None)
        say(
            f"{each['attempted_at']}  endpoint {each['endpoint_id']}, attempt {each['attempt']}"
            f" ({each['cause']}): {answer}, {each['duration_ms']:g} ms, {each['url']}"
            f" (revision {each['revision']})"
        )
        if each["evidence"] is not None:
            _tell_evidence(each["evidence"])
        if each.get("answer"):
            say(f"    {each['answer']}")
    if earlier:
        say(f"earlier events of this subject: {', '.join(map(str, earlier))}")


def _tell_evidence(evidence: dict[str, Any]) -> None:
    """Print where a failed attempt went and how far it came, and the headers of its answer if they are there."""
    address, ms = evidence.get("address", "nothing dialled"), evidence["ms"]
    parts = [f"the proxy {address}" if "via" in evidence else address]
    if "reused" in evidence:
        parts.append("on an open connection")
    parts += [f"{words} after {ms[phase]} ms" for phase, words in _PHASES.items() if phase in ms]
    say(f"    {', '.join(parts)}")
    for name, value in evidence.get("headers", {}).items():
        say(f"    {name}: {value}")
    if "headers_left_out" in evidence:
        say(f"    headers left out: {evidence['headers_left_out']}")
