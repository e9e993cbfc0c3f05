"""The commands for developers of receivers: `send` and `receive`; they need no database.

Never here: work. `send` calls devtools/sample_requests.py, `receive` calls devtools/printing_receiver.py.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import base64
import dataclasses
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from pghookd.cli.terminal import (
    DONE,
    NO,
    expected_faults,
    fail,
    json_line_of,
    json_of,
    load,
    say,
    secret_of,
    warn,
    with_config,
    with_json,
)
from pghookd.settings.wrong_values import quoted

if TYPE_CHECKING:
    from pghookd.cli.devtools.printing_receiver import Received
    from pghookd.cli.devtools.sample_requests import Judged, Sample, Way
    from pghookd.settings.network import EgressPolicy
    from pghookd.settings.schema import Settings

LOOPBACK: Final = ("127.0.0.0/8", "::1/128", "localhost")
ATTEMPTS_MAX: Final = 100


# Sending ----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("url", metavar="URL")
@click.option(
    "--type",
    "event_type",
    default="order_created",
    metavar="T",
    help="Event type to send. Default: order_created.",
)
@click.option(
    "--secret",
    "given",
    metavar="S",
    help="Sign with this secret; - reads it from standard input, which hides it from ps.",
)
@click.option("--payload", type=click.File("rb"), metavar="FILE", help="Send this JSON instead of a sample.")
@click.option("--twice", is_flag=True, help="Send the same event twice; both should be answered with 2xx.")
@click.option(
    "--tamper", is_flag=True, help="Also send an event changed after signing; it should be refused with 4xx."
)
@click.option(
    "--stale", is_flag=True, help="Also send an event signed 15 minutes ago; it should be refused with 4xx."
)
@click.option(
    "--retry", type=click.IntRange(1, ATTEMPTS_MAX), metavar="N", help="Send N attempts of one event."
)
@click.option(
    "--allow",
    multiple=True,
    metavar="PLACE",
    help="Also allow these networks or host names (default: loopback only).",
)
@with_config
@with_json
def send(
    *,
    url: str,
    event_type: str,
    given: str | None,
    payload: IO[bytes] | None,
    twice: bool,
    tamper: bool,
    stale: bool,
    retry: int | None,
    allow: tuple[str, ...],
    config: Path | None,
    as_json: bool,
) -> None:
    """Send a signed sample event and check the receiver's answer."""
    way = _way(twice=twice, tamper=tamper, stale=stale, retry=retry is not None)
    sample = _sample(event_type, secret_of(given), payload)
    if sample.sign is None and way in {"tamper", "stale"}:
        raise click.UsageError(f"--{way} needs --secret: a receiver cannot verify an unsigned request.")
    with expected_faults(as_json=as_json):
        settings = load(config)
        policy = _policy(settings, allow or LOOPBACK)
        if not allow and not as_json:
            warn(f"Also allowed: {', '.join(LOOPBACK)}. Use --allow to allow other places instead.")
        answers: list[Judged] = []
        told = answers.append if as_json else _tell_answer
        from pghookd.cli.devtools import sample_requests as sampling

        right = asyncio.run(sampling.send(settings, policy, url, sample, way, retry or 1, told=told))
        if as_json:
            click.echo(json_of({"right": right, "requests": [_json_of_answer(each) for each in answers]}))
        else:
            _tell_blocked(url, policy)
        sys.exit(DONE if right else NO)


def _tell_blocked(url: str, policy: EgressPolicy) -> None:
    from pghookd.egress.destination import Refusal, parse

    destination = parse(url, policy)
    if isinstance(destination, Refusal):
        say(f"this URL is blocked: {destination.why}")


def _way(*, twice: bool, tamper: bool, stale: bool, retry: bool) -> Way:
    from pghookd.cli.devtools.sample_requests import Way

    asked = [Way.TWICE] * twice + [Way.TAMPER] * tamper + [Way.STALE] * stale + [Way.RETRY] * retry
    if len(asked) > 1:
        raise click.UsageError("use only one of --twice, --tamper, --stale and --retry.")
    return asked[0] if asked else Way.ONCE


def _sample(event_type: str, secret: str | None, payload: IO[bytes] | None) -> Sample:
    import orjson

    from pghookd.cli.devtools import sample_requests
    from pghookd.model.event_type import valid_type
    from pghookd.webhook.signing import signer_of

    if not valid_type(event_type):
        raise click.BadParameter(
            f"{quoted(event_type)} is not identifiers joined by dots, at most 128 characters.",
            param_hint="--type",
        )
    text = sample_requests.payload_of(event_type) if payload is None else payload.read()
    try:
        orjson.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is not valid JSON: {error}.", param_hint="--payload") from None
    try:
        sign = None if secret is None else signer_of(secret)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--secret") from None
    return sample_requests.Sample(event_type, text, sign)


def _policy(settings: Settings, allow: tuple[str, ...]) -> EgressPolicy:
    from pghookd.settings.network import parse_places

    try:
        places = parse_places((*settings.egress.allow, *allow))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--allow") from None
    return dataclasses.replace(settings.egress.policy(), allow=places)


def _tell_answer(judged: Judged) -> None:
    answer = judged.error or str(judged.status)
    text = f"{judged.case.what}: expected {judged.case.expected}, got {answer} in {judged.duration_ms:g} ms"
    say(text, style="green" if judged.right else "red", label="right" if judged.right else "wrong")


def _json_of_answer(judged: Judged) -> dict[str, Any]:
    told = {name: getattr(judged, name) for name in ("webhook_id", "status", "error", "duration_ms", "right")}
    case = judged.case
    return {"what": case.what, "attempt": case.attempt, "expected": case.expected, **told}


# Receiving --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("port", type=click.IntRange(0, 65535), metavar="PORT")
@click.option(
    "--secret",
    "given",
    multiple=True,
    metavar="S",
    help="Verify with this secret (repeatable: any may match); - reads one from standard input.",
)
@click.option(
    "--status", type=click.IntRange(200, 599), default=200, metavar="N", help="Status code to answer."
)
@with_config
@with_json
def receive(port: int, given: tuple[str, ...], status: int, config: Path | None, *, as_json: bool) -> None:
    """Receive on 127.0.0.1; verify and print each request until Ctrl-C. With --json, one line per request."""
    with expected_faults(as_json=as_json):
        if config is not None:
            load(config)
        secrets = tuple(_verifiable(each) for each in given)
        from pghookd.cli.devtools.printing_receiver import Printer, listen

        printer = Printer(
            _show_as_json if as_json else show_received, secrets=secrets, port=port, status=status
        )
        try:
            asyncio.run(listen(printer, _tell_where(secrets, warn if as_json else say)))
        except OSError as error:
            text = f"cannot listen on port {port}: {error.strerror or error}"
            fail(NO, text, [text], as_json=as_json)


def _verifiable(given: str) -> str:
    secret = secret_of(given) or ""
    if secret.startswith(("whsk_", "whpk_")):
        raise click.BadParameter(
            "is an Ed25519 key, which receive cannot verify; use a whsec_ secret or another text.",
            param_hint="--secret",
        )
    try:
        base64.b64decode(secret.removeprefix("whsec_") if secret.startswith("whsec_") else "", validate=True)
    except ValueError:
        raise click.BadParameter("must be base64 after whsec_.", param_hint="--secret") from None
    return secret


def _tell_where(secrets: tuple[str, ...], tell: Callable[[str], None]) -> Callable[[str], None]:
    def told(url: str) -> None:
        tell(f"receiving at {url} (press Ctrl-C to stop)")
        if not secrets:
            warn("signatures are not verified, because no --secret was given")

    return told


def show_received(received: Received) -> None:
    """Print one delivery: its summary, its destination and its body."""
    label, style = _belief(received)
    at = datetime.fromtimestamp(received.at_s, UTC).strftime("%H:%M:%S")
    headers = received.headers
    attempt = headers.get("x-webhook-attempt", "?")
    again = ", seen before" if received.repeated else ""
    text = f"{at}  {received.event_type}  {headers.get('webhook-id', '?')}, attempt {attempt}{again}"
    why = f" ({received.refuted})" if received.refuted else ""
    say(f"{text}: answered {received.status}{why}", style=style, label=label)
    say(f"{'':<9} to {received.host}{received.path}")
    say(f"{'':<9} body {received.body.decode('utf-8', 'replace')}")


def _belief(received: Received) -> tuple[str, str]:
    if received.refuted is not None:
        return "refused", "red"
    if received.verified:
        return "verified", "green"
    return ("signed", "") if received.signed else ("unsigned", "yellow")


def _show_as_json(received: Received) -> None:
    told = {
        "at": datetime.fromtimestamp(received.at_s, UTC).isoformat(timespec="milliseconds"),
        "verdict": _belief(received)[0],
        "why": received.refuted,
        "repeated": received.repeated,
        "status": received.status,
        "host": received.host,
        "path": received.path,
        "headers": dict(received.headers),
        "body": received.body.decode("utf-8", "replace"),
    }
    click.echo(json_line_of(told))
