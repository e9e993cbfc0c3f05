"""The commands about endpoints and their secrets: `endpoint add, list, show, enable, disable, test`, `secret ...`.

Never here: work. A command loads the settings, calls one function of operations/endpoints.py and prints its result. A
secret is printed only once, right after it was made.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

import click

from pghookd.cli.terminal import (
    DONE,
    NO,
    NO_DATABASE,
    Group,
    expected_faults,
    fail,
    json_of,
    load,
    say,
    secret_of,
    wanted,
    warn,
    with_config,
    with_json,
)
from pghookd.model.delivery import State
from pghookd.model.delivery_states import End
from pghookd.settings.wrong_values import json_kind, quoted

if TYPE_CHECKING:
    from pghookd.encryption.encrypt_at_rest import Progress
    from pghookd.settings.schema import Settings

HELD: Final = ("deliver", "drop", "latest_per_key")
AUTH_LENGTH_MAX: Final = 65536  # characters that are read; the column allows fewer
HEALTHY: Final = frozenset({"healthy", "shaky"})
CHECK_VIOLATION: Final = "23514"
TEST_MARGIN_S: Final = 5.0  # in addition to the request's timeout

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ID = click.argument("endpoint_id", type=click.IntRange(min=0, max=2**63 - 1), metavar="ID")


@click.group(cls=Group)
def endpoint() -> None:
    """Manage endpoints."""


@click.group(cls=Group)
def secret() -> None:
    """Rotate signing secrets and encryption keys."""


# Adding -----------------------------------------------------------------------------------------------------


_OPTIONS: Final = (
    click.option("--types", metavar="A,B", help="Event types to deliver. Default: all except webhook_*."),
    click.option("--secret", "given", metavar="S", help="Sign with this; - reads it from standard input."),
    click.option("--new-secret", is_flag=True, help="Generate a secret and print it once (the default)."),
    click.option("--no-secret", is_flag=True, help="Send unsigned requests."),
    click.option("--description", metavar="TEXT", help="The owner's name for the endpoint, used in emails."),
    click.option("--concurrency", type=int, metavar="N", help="Maximum number of requests in flight, 1 to 1000."),
    click.option("--rate-per-s", type=float, metavar="R", help="Maximum number of requests a second, 0.001 to 10000."),
    click.option("--ordered", is_flag=True, help="Deliver events with the same ordering_key one at a time, in order."),
    click.option("--filter", metavar="JSONPATH", help="Deliver only events whose payload matches this."),
    click.option("--timeout-s", type=float, metavar="S", help="Request timeout in seconds, at most 30."),
    click.option("--retry-schedule", metavar="5s,5m,2h", help="Waits after failure 1, 2, ...; none: a single attempt."),
    click.option("--success-statuses", metavar="200,202", help="Statuses that count as success. Default: any 2xx."),
    click.option("--profile", metavar="NAME", help="Also send another provider's signature headers."),
    click.option("--profile-spec", "spec", metavar="JSON", help="How the profile custom signs."),
    click.option("--auth", type=click.File("r"), metavar="FILE", help="Authentication as JSON; - is standard input."),
    click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Also send this header."),
)  # fmt: skip


def _with_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@endpoint.command("add")
@click.argument("site_id", metavar="SITE")
@click.argument("url", metavar="URL")
@_with_options
@with_config
@with_json
def endpoint_add(
    *,
    site_id: str,
    url: str,
    types: str | None,
    given: str | None,
    new_secret: bool,
    no_secret: bool,
    headers: tuple[str, ...],
    spec: str | None,
    auth: TextIO | None,
    config: Path | None,
    as_json: bool,
    **columns: object,
) -> None:
    """Add an endpoint to a site. It receives events inserted from now on."""
    if (given is not None) + new_secret + no_secret > 1:
        raise click.UsageError("use only one of --secret, --new-secret and --no-secret.")
    row = {name: value for name, value in columns.items() if value is not None and value is not False}
    row |= {"site_id": site_id, "url": url, "headers": _headers(headers), "secret": _usable(secret_of(given))}
    if spec is not None:
        row["profile_spec"] = _object("--profile-spec", spec)
    if auth is not None:
        row["auth"] = _object("--auth", auth.read(AUTH_LENGTH_MAX))
    if types is not None:
        row["event_types"] = _types(types)
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        is_new = given is None and not no_secret
        with _constraints_explained(row, as_json=as_json):
            made = asyncio.run(endpoints.add_endpoint(settings, row, new_secret=is_new))
        _tell_added(made, _why_blocked(settings, url), as_json=as_json)


@contextlib.contextmanager
def _constraints_explained(columns: Mapping[str, object], *, as_json: bool) -> Iterator[None]:
    """Report a violated constraint of an endpoint by its option; other errors pass."""
    from pghookd.cli.constraints import explained
    from pghookd.postgres.client import DatabaseError

    try:
        yield
    except DatabaseError as error:
        text = explained(error.constraint or "", columns) if error.sqlstate == CHECK_VIOLATION else None
        if text is None:
            raise
        fail(NO, text, [text], as_json=as_json)


def _tell_added(made: dict[str, Any], blocked: str | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_of({**made, "blocked": blocked}))
        return
    say(f"endpoint {made['endpoint_id']}")
    if made["secret"] is not None:
        say(f"secret, shown only once: {made['secret']}")
    if blocked is not None:
        warn(f"requests to this URL will be blocked: {blocked}")


def _why_blocked(settings: Settings, url: str) -> str | None:
    """Return why requests to a URL will be blocked, or None if nothing blocks them before DNS."""
    from pghookd.egress.destination import Refusal, parse

    destination = parse(url, settings.egress.policy())
    return f"{destination.name}: {destination.why}" if isinstance(destination, Refusal) else None


def _types(text: str) -> list[str]:
    types = [part.strip() for part in text.split(",") if part.strip()]
    if not types:
        raise click.BadParameter(
            f"{quoted(text)} names no event type; write them as in order_created,order_updated.",
            param_hint="--types",
        )
    return types


def _object(option: str, text: str) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is not valid JSON: {error}.", param_hint=option) from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"must be a JSON object, not {json_kind(found)}.", param_hint=option)
    return found


def _headers(lines: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter("must be written as 'Name: value'.", param_hint="--header")
        found[name.strip()] = value.strip()
    return found


# Looking ----------------------------------------------------------------------------------------------------


@endpoint.command("list")
@click.option("--site", "site_id", metavar="SITE", help="List only the endpoints of this site.")
@with_config
@with_json
def endpoint_list(site_id: str | None, config: Path | None, *, as_json: bool) -> None:
    """List endpoints with their health and their undelivered events."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        found = asyncio.run(endpoints.list_endpoints(settings, site_id))
        if as_json:
            click.echo(json_of({"endpoints": found}))
            return
        for each in found:
            counts = [f"{each[state]} {state}" for state in (*State, End.DEAD) if each[state]]
            text = "  ".join((str(each["endpoint_id"]), each["site_id"], each["url"], ", ".join(counts)))
            say(text.rstrip(), style=_style(each["health"]), label=each["health"])


def _style(health: str) -> str:
    return "green" if health in HEALTHY else "red"


@endpoint.command("show")
@_ID
@with_config
@with_json
def endpoint_show(endpoint_id: int, config: Path | None, *, as_json: bool) -> None:
    """Show an endpoint's options and health. Secrets are not shown, only their kind."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        told = asyncio.run(endpoints.show_endpoint(settings, endpoint_id))
        if told is None:
            text = f"there is no endpoint {endpoint_id}"
            fail(NO, text, [text], as_json=as_json)
        elif as_json:
            click.echo(json_of(told))
        else:
            for line in wanted(told):
                say(line)


# Acting -----------------------------------------------------------------------------------------------------


@endpoint.command("enable")
@_ID
@click.option(
    "--held",
    type=click.Choice(HELD),
    default="deliver",
    help="What to do with held events. Default: deliver.",
)
@with_config
@with_json
def endpoint_enable(endpoint_id: int, held: str, config: Path | None, *, as_json: bool) -> None:
    """Switch an endpoint on, and deliver or drop its held events."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        released = asyncio.run(endpoints.enable_endpoint(settings, endpoint_id, held))
        if as_json:
            click.echo(json_of({"endpoint_id": endpoint_id, "enabled": True, "released": released}))
        else:
            say(f"endpoint {endpoint_id} is enabled; {released} held deliveries are released")


@endpoint.command("disable")
@_ID
@with_config
@with_json
def endpoint_disable(endpoint_id: int, config: Path | None, *, as_json: bool) -> None:
    """Switch an endpoint off. Its events are held."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        asyncio.run(endpoints.disable_endpoint(settings, endpoint_id))
        if as_json:
            click.echo(json_of({"endpoint_id": endpoint_id, "enabled": False}))
        else:
            say(f"endpoint {endpoint_id} is disabled: its events are held")


@endpoint.command("test")
@_ID
@click.option(
    "--type",
    "event_type",
    default="webhook_test",
    metavar="T",
    help="Event type; its example is the payload.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds to wait for the answer. Default: delivery.timeout_s + 5.",
)
@with_config
@with_json
def endpoint_test(
    endpoint_id: int, event_type: str, wait_s: float | None, config: Path | None, *, as_json: bool
) -> None:
    """Send one test event and report the answer. It is not retried."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        limit_s = settings.delivery.timeout_s + TEST_MARGIN_S if wait_s is None else wait_s
        told = asyncio.run(endpoints.test_endpoint(settings, endpoint_id, event_type, limit_s))
        if told["outcome"] is None and told["state"] != End.DEAD:
            text = _why_not_sent(told, limit_s)
            fail(NO_DATABASE, text, [text], as_json=as_json)
        if as_json:
            click.echo(json_of(told))
        else:
            _tell_test(told)
        sys.exit(DONE if told["outcome"] == "delivered" else NO)


def _why_not_sent(told: dict[str, Any], limit_s: float) -> str:
    sent = f"event {told['event_id']} was not sent within {limit_s:g} s"
    if told["state"] is None:
        return f"{sent}: no daemon has read it. Is `pghookd run` running on this database?"
    return f"{sent}: it is {told['state']} ({told['reason']})"


def _tell_test(told: dict[str, Any]) -> None:
    if told["outcome"] is None:
        say(f"not sent: {told['reason']}", style="red", label=told["state"])
        return
    answer = " ".join(str(part) for part in (told["status"], told["error"]) if part is not None)
    style = "green" if told["outcome"] == "delivered" else "red"
    say(f"{answer} in {told['duration_ms']:g} ms ({told['webhook_id']})", style=style, label=told["outcome"])


# Secrets ----------------------------------------------------------------------------------------------------


@secret.command("rotate")
@click.argument("endpoint_id", type=click.IntRange(min=0, max=2**63 - 1), metavar="ENDPOINT")
@click.option(
    "--overlap", default="24h", metavar="24h", help="How long the old secret stays valid; 0: not at all."
)
@with_config
@with_json
def secret_rotate(endpoint_id: int, overlap: str, config: Path | None, *, as_json: bool) -> None:
    """Generate a new signing secret and print it once. Until --overlap ends, requests carry both signatures."""
    overlap_s = _seconds(overlap)
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        made = asyncio.run(endpoints.rotate_secret(settings, endpoint_id, overlap_s))
        public = _public_key(made)
        if as_json:
            told = {"endpoint_id": endpoint_id, "secret": made, "overlap_s": overlap_s}
            click.echo(json_of(told if public is None else {**told, "public_key": public}))
        else:
            say(f"secret of endpoint {endpoint_id}, shown only once: {made}")
            if public is not None:
                say(f"its public key, for the receiver: {public}")
            say(
                f"the old secret stays valid for {overlap}"
                if overlap_s
                else "the old secret is no longer valid"
            )


@secret.command("rotate-key")
@with_config
@with_json
def secret_rotate_key(config: Path | None, *, as_json: bool) -> None:
    """Encrypt every secret with the first key of secrets.key. Safe to interrupt and repeat."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        done = asyncio.run(endpoints.rotate_key(settings, _silent if as_json else _tell_progress))
        if done is None:
            text = "secrets.key is not set: there is no key to encrypt with"
            fail(NO, text, [text], as_json=as_json)
        if as_json:
            click.echo(json_of(dataclasses.asdict(done)))
        else:
            say(f"the secrets of {done.wrapped} endpoints were encrypted, of {done.looked_at} that have one")
            for endpoint_id in done.unopened:
                warn(
                    f"endpoint {endpoint_id}: no key in secrets.key decrypts its secret, which was left unchanged"
                )
        sys.exit(NO if done.unopened else DONE)


def _silent(_progress: Progress) -> None:
    """Print nothing, because standard output must contain only JSON."""


def _tell_progress(progress: Progress) -> None:
    if progress.looked_at < progress.total:
        warn(f"{progress.looked_at} of {progress.total} endpoints")


def _usable(secret: str | None) -> str | None:
    """Return a secret after checking that it can sign; SQL cannot check that a key pair's two halves match."""
    if secret is not None:
        try:
            _public_key(secret)
        except ValueError as error:
            raise click.BadParameter(f"{error}.", param_hint="--secret") from None
    return secret


def _public_key(secret: str) -> str | None:
    """Return the public key with which receivers verify, or None if they verify with the secret itself."""
    from pghookd.webhook import signing

    return signing.public_key_of(secret) if secret.startswith(signing.PRIVATE_PREFIX) else None


def _seconds(text: str) -> float:
    from pghookd.settings.durations import parse_schedule

    if text.strip() == "0":
        return 0.0
    try:
        (seconds,) = parse_schedule(text)
    except ValueError:
        raise click.BadParameter(
            f"expected a duration such as 24h, or 0; found {quoted(text)}.", param_hint="--overlap"
        ) from None
    return seconds
