"""The commands about endpoints and their secrets: `endpoint add, list, show, enable, disable, test`, `secret ...`.

Never here: work. A command loads the settings, calls one function of operations/endpoints.py and prints its result. A
secret is printed only once, right after it was made.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see main.py

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable
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

if TYPE_CHECKING:
    from pghookd.encryption.encrypt_at_rest import Progress
    from pghookd.settings.schema import Settings

HELD: Final = ("deliver", "drop", "latest_per_key")
AUTH_LENGTH_MAX: Final = 65536  # characters that are read; the column allows fewer
HEALTHY: Final = frozenset({"healthy", "shaky"})
TEST_MARGIN_S: Final = 5.0  # in addition to the request's timeout

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ID = click.argument("endpoint_id", type=click.IntRange(min=0, max=2**63 - 1), metavar="ID")


@click.group(cls=Group)
def endpoint() -> None:
    """Manage endpoints."""


@click.group(cls=Group)
def secret() -> None:
    """Manage signing secrets."""


# Adding -----------------------------------------------------------------------------------------------------


_OPTIONS: Final = (
    click.option("--types", metavar="A,B", help="Types it takes; all but webhook_* if left out."),
    click.option("--secret", "given", metavar="S", help="Sign with this secret; - reads it from standard input."),
    click.option("--new-secret", is_flag=True, help="Make a secret and print it once (the default)."),
    click.option("--no-secret", is_flag=True, help="Do not sign."),
    click.option("--description", metavar="TEXT", help="What its owner calls it."),
    click.option("--concurrency", type=int, metavar="N", help="Requests at a time."),
    click.option("--rate-per-s", type=float, metavar="R", help="Requests a second."),
    click.option("--ordered", is_flag=True, help="One by one per ordering_key."),
    click.option("--filter", metavar="JSONPATH", help="Only events whose payload it holds for."),
    click.option("--timeout-s", type=float, metavar="S", help="Seconds for a request."),
    click.option("--retry-schedule", metavar="5s,5m,2h", help="Waits after failures."),
    click.option("--success-statuses", metavar="200,202", help="Fewer than all of 2xx."),
    click.option("--profile", metavar="NAME", help="Further signature headers that receivers know."),
    click.option("--profile-spec", "spec", metavar="JSON", help="How the profile `custom` signs."),
    click.option("--auth", type=click.File("r"), metavar="FILE", help="JSON: how requests identify themselves."),
    click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Send this header as well."),
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
    """Register an endpoint of a site; it gets the events inserted from now on."""
    if (given is not None) + new_secret + no_secret > 1:
        raise click.UsageError("--secret, --new-secret and --no-secret exclude each other.")
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
        made = asyncio.run(endpoints.add_endpoint(settings, row, new_secret=is_new))
        _tell_added(made, _why_blocked(settings, url), as_json=as_json)


def _tell_added(made: dict[str, Any], blocked: str | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_of({**made, "blocked": blocked}))
        return
    say(f"endpoint {made['endpoint_id']}")
    if made["secret"] is not None:
        say(f"secret, shown this once: {made['secret']}")
    if blocked is not None:
        warn(f"requests to this URL will be blocked: {blocked}")


def _why_blocked(settings: Settings, url: str) -> str | None:
    """Return why requests to a URL will be blocked, or None if nothing blocks them before DNS."""
    from pghookd.egress.destination import Refusal, parse

    aim = parse(url, settings.egress.policy())
    return f"{aim.name}: {aim.why}" if isinstance(aim, Refusal) else None


def _types(text: str) -> list[str]:
    types = [part.strip() for part in text.split(",") if part.strip()]
    if not types:
        raise click.BadParameter("names no type.", param_hint="--types")
    return types


def _object(option: str, text: str) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is no JSON: {error}.", param_hint=option) from None
    if not isinstance(found, dict):
        raise click.BadParameter("is no JSON object.", param_hint=option)
    return found


def _headers(lines: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter("is written 'Name: value'.", param_hint="--header")
        found[name.strip()] = value.strip()
    return found


# Looking ----------------------------------------------------------------------------------------------------


@endpoint.command("list")
@click.option("--site", "site_id", metavar="SITE", help="Only this site's.")
@with_config
@with_json
def endpoint_list(site_id: str | None, config: Path | None, *, as_json: bool) -> None:
    """List endpoints with their health and the number of deliveries that wait for them."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        found = asyncio.run(endpoints.list_endpoints(settings, site_id))
        if as_json:
            click.echo(json_of({"endpoints": found}))
            return
        for each in found:
            counts = [f"{each[x]} {x}" for x in ("waiting", "parked", "held", "dead") if each[x]]
            text = "  ".join((str(each["endpoint_id"]), each["site_id"], each["url"], ", ".join(counts)))
            say(text.rstrip(), style=_style(each["health"]), label=each["health"])


def _style(health: str) -> str:
    return "green" if health in HEALTHY else "red"


@endpoint.command("show")
@_ID
@with_config
@with_json
def endpoint_show(endpoint_id: int, config: Path | None, *, as_json: bool) -> None:
    """Show an endpoint: every option that is set, how it is, and of its secret only the kind."""
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
@click.option("--held", type=click.Choice(HELD), default="deliver", help="What becomes of held events.")
@with_config
@with_json
def endpoint_enable(endpoint_id: int, held: str, config: Path | None, *, as_json: bool) -> None:
    """Switch an endpoint on; its held events go out, or are dropped."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        released = asyncio.run(endpoints.enable_endpoint(settings, endpoint_id, held))
        if as_json:
            click.echo(json_of({"endpoint_id": endpoint_id, "enabled": True, "released": released}))
        else:
            say(f"endpoint {endpoint_id} is enabled; held deliveries that go out now: {released}")


@endpoint.command("disable")
@_ID
@with_config
@with_json
def endpoint_disable(endpoint_id: int, config: Path | None, *, as_json: bool) -> None:
    """Switch an endpoint off; its events are held."""
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
@click.option("--type", "event_type", default="webhook_test", metavar="T", help="Send this type's example.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), metavar="S", help="Wait so many seconds.")
@with_config
@with_json
def endpoint_test(
    endpoint_id: int, event_type: str, wait_s: float | None, config: Path | None, *, as_json: bool
) -> None:
    """Send one test event and say what the endpoint answered. It is never tried again."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.operations import endpoints

        limit_s = settings.delivery.timeout_s + TEST_MARGIN_S if wait_s is None else wait_s
        told = asyncio.run(endpoints.test_endpoint(settings, endpoint_id, event_type, limit_s))
        if told["outcome"] is None and told["state"] != "dead":
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
        return f"{sent}: no daemon has taken it. Does `pghookd run` run on this database?"
    return f"{sent}: the daemon keeps it {told['state']}, {told['reason']}"


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
    "--overlap", default="24h", metavar="24h", help="How long the one before signs as well; 0: not at all."
)
@with_config
@with_json
def secret_rotate(endpoint_id: int, overlap: str, config: Path | None, *, as_json: bool) -> None:
    """Give an endpoint a new secret and print it once; for a while requests carry both signatures."""
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
            say(f"secret of endpoint {endpoint_id}, shown this once: {made}")
            if public is not None:
                say(f"its public key, for the receiver: {public}")
            say(
                f"the one before signs as well for {overlap}" if overlap_s else "the one before signs no more"
            )


@secret.command("rotate-key")
@with_config
@with_json
def secret_rotate_key(config: Path | None, *, as_json: bool) -> None:
    """Encrypt every secret with the first key of secrets.key; may be interrupted and begun again."""
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
            say(f"secrets of {done.wrapped} endpoints were encrypted anew, of {done.looked_at} with a secret")
            for endpoint_id in done.unopened:
                warn(f"endpoint {endpoint_id}: no key of secrets.key opens its secret; it is left as it is")
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
        raise click.BadParameter("is one duration, as in 24h.", param_hint="--overlap") from None
    return seconds
