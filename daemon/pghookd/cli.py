"""The commands: what an operator types, what is printed, and the exit status.

Everything dear is imported by the command that needs it, so that `--version` and completion are quick.
Expected faults end in one message and a status: 1 the answer is no, 2 usage, 3 no usable database or schema,
78 settings.

Never here: work. A command loads the settings, calls one function and prints what it returned.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see above

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from pghookd import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from pghookd.core.destination import Destination, Refusal
    from pghookd.core.settings import Settings
    from pghookd.letter_samples import Preview

DONE: Final = 0
NO: Final = 1
NO_DATABASE: Final = 3
SETTINGS: Final = 78  # EX_CONFIG of sysexits.h

_MISSING_SCHEMA: Final = frozenset({"3F000", "42P01", "42883", "42703"})
_STYLES: Final = {"fine": "green", "warning": "yellow", "fault": "red", "blocked": "red", "settings": "red"}

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Group(click.Group):
    """A group whose groups answer to their plural too: `events why` is `event why`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command by its name or, if it is a group, by its plural."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name.endswith("s"):
            singular = super().get_command(ctx, cmd_name[:-1])
            return singular if isinstance(singular, click.Group) else None
        return found


def _with_config(command: _Command) -> _Command:
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings in TOML. The environment (PGHOOKD_SECTION_NAME) and credentials win over it.",
    )(command)


def _with_json(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(command)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="pghookd %(version)s")
def cli() -> None:
    """Deliver webhooks from a Postgres table: signed, retried, recorded."""


def main() -> None:
    """Run the command line."""
    cli(prog_name="pghookd")


# The daemon -------------------------------------------------------------------------------------------------


@cli.command()
@_with_config
def run(config: Path | None) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    with _expected_faults():
        settings = _load(config)
        from pghookd import app

        sys.exit(app.run(settings, reload=lambda: _load(config)))


@cli.command()
@click.option(
    "--events", type=click.IntRange(min=1), metavar="N", help="Send N events, then end with a summary."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the data goes.",
)
@_with_config
def demo(events: int | None, folder: Path | None, config: Path | None) -> None:
    """Watch events travel: an embedded Postgres, the daemon and a receiver, all on this machine."""
    with _expected_faults():
        if config is not None:
            _load(config)
        from pghookd import demo as show

        sys.exit(show.main(events, folder))


# The schema -------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would be applied; change nothing.")
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print all migrations for other tools; needs no database."
)
@click.option("--roles", is_flag=True, help="Make the roles and their rights as well (repeatable).")
@_with_config
@_with_json
def migrate(*, dry_run: bool, as_sql: bool, roles: bool, config: Path | None, as_json: bool) -> None:
    """Bring the schema webhooks up to date."""
    if as_sql and dry_run:
        raise click.UsageError("--sql and --dry-run exclude each other.")
    with _expected_faults(as_json=as_json):
        from pghookd import migrate as migrating

        if as_sql:
            text = migrating.script(roles=roles)
            click.echo(_json_of({"sql": text}) if as_json else text)
            return
        url = _load(config).database.url.get_secret_value()
        report = asyncio.run(migrating.migrate(url, dry_run=dry_run, roles=roles, say=_warn))
        if as_json:
            done = [{"version": each.version, "name": each.name} for each in report.applied]
            rest = {"version": report.version, "newer": report.newer, "roles": roles, "dry_run": dry_run}
            click.echo(_json_of({"applied": done, **rest}))
            return
        verb = "would apply" if dry_run else "applied"
        for each in report.applied:
            _say(f"{verb} {each.version:04}_{each.name}")
        state = "would be" if dry_run and report.applied else "is"
        _say(f"the schema webhooks {state} at migration {max(report.version, *report.newer, 0):04}")
        if roles:
            _say("the roles would be made" if dry_run else "the roles are made")


@cli.command()
@_with_config
@_with_json
def check(config: Path | None, *, as_json: bool) -> None:
    """Look for everything that would keep the daemon from working."""
    from pghookd.check import Finding, Grade, exit_status
    from pghookd.check import check as look
    from pghookd.edge.credentials import SettingsError, exposed

    findings: list[Finding] = []
    settings: Settings | None
    try:
        settings = _load(config)
    except SettingsError as error:
        settings = error.rest
        findings += [Finding(Grade.SETTINGS, "settings", fault) for fault in error.faults]
    else:
        findings.append(Finding(Grade.FINE, "settings", "in order"))
    for variable in exposed(os.environ):
        text = f"{variable} carries a secret, which every child process inherits: a credential file does not"
        findings.append(Finding(Grade.WARNING, "settings", text))
    if settings is not None:
        findings += asyncio.run(look(settings))
    status = exit_status(findings)
    if as_json:
        told = [{"grade": each.grade, "what": each.what, "text": each.text} for each in findings]
        click.echo(_json_of({"status": status, "findings": told}))
    else:
        for each in findings:
            _say(f"{each.what}: {each.text}", style=_STYLES[each.grade], label=each.grade)
    sys.exit(status)


@cli.command()
@click.option("--skip-backlog", is_flag=True, help="Deliver nothing of what is not settled yet.")
@_with_config
@_with_json
def adopt(*, skip_backlog: bool, config: Path | None, as_json: bool) -> None:
    """Take a restored or copied database for the daemon's own and go on there."""
    with _expected_faults(as_json=as_json):
        settings = _load(config)
        from pghookd import adopt as adopting

        result = asyncio.run(adopting.adopt(settings, skip_backlog=skip_backlog))
        if as_json:
            click.echo(_json_of(result))
            return
        for key, value in result.items():
            _say(f"{key.replace('_', ' ')}: {value}")


# Destinations -----------------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def url() -> None:
    """Where requests may go."""


@url.command("check")
@click.argument("address_of_endpoint", metavar="URL")
@click.option("--address", "addresses", multiple=True, metavar="IP", help="Judge this address; asks no DNS.")
@_with_config
@_with_json
def url_check(
    address_of_endpoint: str, addresses: tuple[str, ...], config: Path | None, *, as_json: bool
) -> None:
    """Say whether a URL may be delivered to, and if not, why."""
    with _expected_faults(as_json=as_json):
        settings = _load(config)
        told = asyncio.run(_judge(settings, address_of_endpoint, addresses))
        if as_json:
            click.echo(_json_of({"url": address_of_endpoint, **told}))
        else:
            _tell_judgement(told)
        sys.exit(DONE if told["verdict"] == "allowed" else NO)


async def _judge(settings: Settings, url: str, addresses: tuple[str, ...]) -> dict[str, Any]:
    from pghookd.core.destination import Refusal, judge_address, parse

    policy = settings.egress.policy()
    aim = parse(url, policy)
    if isinstance(aim, Refusal):
        return _blocked(aim)
    if not addresses:
        return await _resolve(settings, aim)
    for address in addresses:
        refusal = judge_address(address, policy, named=aim.named)
        if refusal is not None:
            return {**_blocked(refusal), "address": address}
    return {"verdict": "allowed", "addresses": list(addresses)}


def _blocked(refusal: Refusal) -> dict[str, Any]:
    return {"verdict": "blocked", "reason": refusal.name, "why": refusal.why}


async def _resolve(settings: Settings, aim: Destination) -> dict[str, Any]:
    if aim.address is not None:
        return {"verdict": "allowed", "addresses": [aim.address]}
    from pghookd.edge.resolver import AddressRefused, GuardedResolver, NameUnknown

    resolver = GuardedResolver(settings.egress.policy())
    try:
        answers = await resolver.resolve(aim.host, aim.port)
    except AddressRefused as error:
        return _blocked(error.refusal)
    except NameUnknown as error:
        return {"verdict": "unreachable", "reason": "dns", "why": error.strerror}
    finally:
        await resolver.close()
    return {"verdict": "allowed", "addresses": [answer["host"] for answer in answers]}


def _tell_judgement(told: dict[str, Any]) -> None:
    if told["verdict"] == "allowed":
        _say(", ".join(told["addresses"]), style="green", label="allowed")
    else:
        where = f"{told['address']}: " if "address" in told else ""
        _say(f"{where}{told['reason']}: {told['why']}", style="red", label=told["verdict"])


# Events -----------------------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def event() -> None:
    """What became of events."""


@event.command("why")
@click.argument("identity", metavar="ID")
@_with_config
@_with_json
def event_why(identity: str, config: Path | None, *, as_json: bool) -> None:
    """Say why an event went to each endpoint of its site, or did not. ID is an event_id or a webhook-id."""
    event_id = _event_id(identity)
    with _expected_faults(as_json=as_json):
        steps = asyncio.run(_explain(_load(config), event_id, identity))
        if as_json:
            click.echo(_json_of({"event_id": event_id, "steps": steps}))
        else:
            for step in steps:
                whom = "event" if step["endpoint_id"] is None else f"endpoint {step['endpoint_id']}"
                _say(
                    "  ".join(filter(None, (step["at"], f"{whom}: {step['detail']}"))),
                    style="bold",
                    label=step["what"],
                )
        sys.exit(NO if steps[0]["what"] == "unknown" else DONE)


def _event_id(identity: str) -> int:
    from pghookd.core.envelope import event_id_of

    if identity.isascii() and identity.isdecimal() and len(identity) <= len(str(2**63)):
        return min(int(identity), 2**63 - 1)
    try:
        return event_id_of(identity)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or a number: an event_id.", param_hint="ID") from None


async def _explain(settings: Settings, event_id: int, identity: str) -> list[dict[str, Any]]:
    from pghookd.core.envelope import timestamp_text, webhook_id
    from pghookd.edge import postgres

    address = settings.database.url.get_secret_value()
    session = await postgres.connect(address, name="explain", settings=_BOUNDS, writable=False)
    try:
        rows = await session.fetch("select endpoint_id, at, what, detail from webhooks.explain($1)", event_id)
    finally:
        await session.close()
    if (
        identity.startswith("evt_")
        and rows[0]["at"] is not None
        and webhook_id(event_id, rows[0]["at"]) != identity
    ):
        # The same number was given out twice, as after a failover: this webhook-id is of the other event.
        detail = f"event {event_id} of this database is another: {webhook_id(event_id, rows[0]['at'])}"
        return [{"endpoint_id": None, "at": None, "what": "unknown", "detail": detail}]
    return [{**row, "at": None if row["at"] is None else timestamp_text(row["at"])} for row in rows]


_BOUNDS: Final = {"statement_timeout": "30s"}


# Mails ------------------------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def email() -> None:
    """The mails that owners get."""


@email.command("preview")
@click.option("--kind", metavar="K", help="Only this one: failing, reminder, warning, disabled, ...")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write files KIND.LANGUAGE.txt, .html and .eml there instead of showing the text.",
)
@click.option("--language", metavar="L", help="Only this language; the terminal shows English otherwise.")
@_with_config
@_with_json
def email_preview(
    *, kind: str | None, folder: Path | None, language: str | None, config: Path | None, as_json: bool
) -> None:
    """Render mails of every kind with made-up failures, in your templates and words where you have some."""
    with _expected_faults(as_json=as_json):
        settings = _load(config)
        from pghookd import letter_samples

        _choice("--kind", kind, letter_samples.NAMES)
        kinds = (kind,) if kind else letter_samples.NAMES
        try:
            shown, faults = letter_samples.preview(settings, kinds, language or (None if folder else "en"))
        except KeyError:
            raise click.BadParameter(f"there are no words for {language}.", param_hint="--language") from None
        written = _written(shown, folder) if folder else []
        if as_json:
            told = [
                {"kind": x.name, "language": x.language, "subject": x.subject, "text": x.text} for x in shown
            ]
            click.echo(_json_of({"letters": told, "files": written, "faults": faults}))
            sys.exit(NO if faults else DONE)
        for file in written:
            _say(file)
        for each in shown if folder is None else ():
            _say(f"{each.subject}\n", style="bold", label=each.name)
            _say(f"{each.text}\n")
        for fault in faults:
            _warn(fault)
        sys.exit(NO if faults else DONE)


def _choice(option: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise click.BadParameter(f"must be one of {', '.join(known)}.", param_hint=option)


def _written(shown: Iterable[Preview], folder: Path) -> list[str]:
    try:
        return [str(file) for each in shown for file in each.write(folder)]
    except OSError as error:
        raise click.BadParameter(f"cannot be written to: {error.strerror}.", param_hint="--to") from None


# Settings, faults, words ------------------------------------------------------------------------------------


def _load(config: Path | None) -> Settings:
    from pghookd.edge.credentials import load

    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return load(config, os.environ, Path(folder) if folder else None)


@contextlib.contextmanager
def _expected_faults(*, as_json: bool = False) -> Iterator[None]:
    """Turn faults that an operator can meet into a message and a status; others are bugs and show as such."""
    from pghookd.edge.credentials import SettingsError
    from pghookd.edge.postgres import DatabaseAway, DatabaseError
    from pghookd.migrate import SchemaFault

    try:
        yield
    except SettingsError as error:
        _fail(SETTINGS, str(error), list(error.faults), as_json=as_json)
    except SchemaFault as error:
        _fail(NO_DATABASE, str(error), list(error.faults), as_json=as_json)
    except DatabaseAway as error:
        text = f"the database cannot be reached: {error}"
        _fail(NO_DATABASE, text, [text], as_json=as_json)
    except DatabaseError as error:
        missing = error.sqlstate in _MISSING_SCHEMA
        text = f"{error}: is the schema there? pghookd migrate makes it" if missing else str(error)
        _fail(NO_DATABASE if missing else NO, text, [text], as_json=as_json)


def _fail(status: int, text: str, faults: list[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(_json_of({"status": status, "faults": faults}))
    else:
        _console(stderr=True).print(_harmless(text), style="red", markup=False, soft_wrap=True)
    sys.exit(status)


def _json_of(value: object) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _console(*, stderr: bool = False) -> Console:
    """Return the one way by which colour gets out: rich honours NO_COLOR and pipes, click does not."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _say(text: str, *, style: str = "", label: str = "") -> None:
    from rich.text import Text

    line = Text.assemble((f"{label:<9} ", style), _harmless(text)) if label else Text(_harmless(text))
    _console().print(line, soft_wrap=True)


def _warn(text: str) -> None:
    _console(stderr=True).print(_harmless(text), style="yellow", soft_wrap=True)


def _harmless(text: str) -> str:
    """Show what was in the database or on the command line without letting it act on the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
