"""The command line's entry point, and the commands that have no file of their own.

Each command imports its slow modules itself, so that `--version` and completion are quick. Commands about endpoints,
events and replays, and those for developers of receivers, have their own files. Shared code is in cli/terminal.py.

Never here: work. A command loads the settings, calls one function and prints its result.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run, see above

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pghookd import __version__
from pghookd.cli.deliveries import delivery
from pghookd.cli.endpoints import endpoint, secret
from pghookd.cli.events import event
from pghookd.cli.receivers import receive, send, show_received
from pghookd.cli.replays import replay
from pghookd.cli.storage import archive, storage
from pghookd.cli.terminal import (
    DONE,
    NO,
    Group,
    expected_faults,
    json_of,
    load,
    say,
    warn,
    with_config,
    with_json,
)
from pghookd.settings.wrong_values import quoted

if TYPE_CHECKING:
    from pghookd.egress.destination import Destination, Refusal
    from pghookd.owner_mail.samples import Preview
    from pghookd.settings.schema import Settings

_STYLES: Final = {"ok": "green", "warning": "yellow", "fault": "red", "blocked": "red", "settings": "red"}


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="pghookd %(version)s")
def cli() -> None:
    """Deliver webhooks from a Postgres table: signed, retried, recorded."""


for _command in (endpoint, secret, event, delivery, replay, storage, archive, send, receive):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="pghookd")


# The daemon -------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--sink", "into_sink", is_flag=True, help="Print every request instead of sending it.")
@with_config
def run(config: Path | None, *, into_sink: bool) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    with expected_faults():
        settings = load(config)
        from pghookd.runtime import app

        if into_sink:
            sys.exit(_run_into_sink(settings, config))
        sys.exit(app.run(settings, reload=lambda: load(config)))


def _run_into_sink(settings: Settings, config: Path | None) -> int:
    from pghookd.cli.devtools import sink
    from pghookd.runtime import app

    warn(
        "SINK: every event counts as delivered, but none is sent: requests go to a receiver in this process,"
        " DNS is not queried, and no emails are sent."
    )
    return app.run(
        sink.without_mails(settings),
        reload=lambda: sink.without_mails(load(config)),
        make_sender=lambda current: sink.Sink(current, show_received),
    )


@cli.command()
@click.option(
    "--events", type=click.IntRange(min=1), metavar="N", help="Send N events, then print a summary and exit."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for the data of the embedded Postgres.",
)
@with_config
def demo(events: int | None, folder: Path | None, config: Path | None) -> None:
    """Show events being delivered live: Postgres, daemon and receiver, all on this machine."""
    with expected_faults():
        if config is not None:
            load(config)
        from pghookd.cli.devtools import demo

        sys.exit(demo.main(events, folder))


# The schema -------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--dry-run", is_flag=True, help="List what would be applied; change nothing.")
@click.option(
    "--sql",
    "as_sql",
    is_flag=True,
    help="Print all migrations and functions for another tool; needs no database.",
)
@click.option(
    "--roles", is_flag=True, help="Also create the roles and grant their privileges; safe to repeat."
)
@with_config
@with_json
def migrate(*, dry_run: bool, as_sql: bool, roles: bool, config: Path | None, as_json: bool) -> None:
    """Bring the schema webhooks up to date."""
    if as_sql and dry_run:
        raise click.UsageError("use only one of --sql and --dry-run.")
    with expected_faults(as_json=as_json):
        from pghookd.postgres import migrate as migrating

        if as_sql:
            text = migrating.script(roles=roles)
            click.echo(json_of({"sql": text}) if as_json else text)
            return
        url = load(config).database.url.get_secret_value()
        report = asyncio.run(migrating.migrate(url, dry_run=dry_run, roles=roles, say=warn))
        if as_json:
            done = {
                "applied": [{"version": each.version, "name": each.name} for each in report.applied],
                "functions": [each.name for each in report.functions],
            }
            rest = {"version": report.version, "newer": report.newer, "roles": roles, "dry_run": dry_run}
            click.echo(json_of({**done, **rest}))
            return
        verb = "would apply" if dry_run else "applied"
        for each in report.applied:
            say(f"{verb} {each.version:04}_{each.name}")
        if report.functions:
            say(f"{verb} functions and views: {', '.join(each.name for each in report.functions)}")
        state = "would be" if dry_run and report.applied else "is"
        say(f"the schema webhooks {state} at migration {max(report.version, *report.newer, 0):04}")
        if roles:
            say("the roles would be made" if dry_run else "the roles are made")


@cli.command()
@with_config
@with_json
def check(config: Path | None, *, as_json: bool) -> None:
    """Check settings, database, schema, privileges and endpoints; report all errors at once."""
    from pghookd.operations.check import Finding, Grade, exit_status
    from pghookd.operations.check import check as look
    from pghookd.settings.load import SettingsError, exposed

    findings: list[Finding] = []
    settings: Settings | None
    try:
        settings = load(config)
    except SettingsError as error:
        settings = error.rest
        findings += [Finding(Grade.SETTINGS, "settings", fault) for fault in error.faults]
    else:
        findings.append(Finding(Grade.FINE, "settings", "in order"))
    for variable in exposed(os.environ):
        text = (
            f"{variable} contains a secret, which every child process inherits; use a credential file instead"
        )
        findings.append(Finding(Grade.WARNING, "settings", text))
    if settings is not None:
        findings += asyncio.run(look(settings))
    status = exit_status(findings)
    if as_json:
        told = [{"grade": each.grade, "what": each.what, "text": each.text} for each in findings]
        click.echo(json_of({"status": status, "findings": told}))
    else:
        for each in findings:
            say(f"{each.what}: {each.text}", style=_STYLES[each.grade], label=each.grade)
    sys.exit(status)


@cli.command()
@click.option("--skip-backlog", is_flag=True, help="Drop everything not yet delivered.")
@with_config
@with_json
def adopt(*, skip_backlog: bool, config: Path | None, as_json: bool) -> None:
    """Allow delivery from a restored or copied database."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.runtime import adopt as adopting

        result = asyncio.run(adopting.adopt(settings, skip_backlog=skip_backlog))
        if as_json:
            click.echo(json_of(result))
            return
        for key, value in result.items():
            say(f"{key.replace('_', ' ')}: {value}")


# Destinations -----------------------------------------------------------------------------------------------


@cli.group(cls=Group)
def url() -> None:
    """Check whether a URL is allowed."""


@url.command("check")
@click.argument("address_of_endpoint", metavar="URL")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="Check this IP address instead of querying DNS.",
)
@with_config
@with_json
def url_check(
    address_of_endpoint: str, addresses: tuple[str, ...], config: Path | None, *, as_json: bool
) -> None:
    """Report whether requests to a URL are allowed, and if not, why."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        told = asyncio.run(_judge(settings, address_of_endpoint, addresses))
        if as_json:
            click.echo(json_of({"url": address_of_endpoint, **told}))
        else:
            _tell_judgement(told)
        sys.exit(DONE if told["verdict"] == "allowed" else NO)


async def _judge(settings: Settings, url: str, addresses: tuple[str, ...]) -> dict[str, Any]:
    from pghookd.egress.destination import Refusal, judge_address, parse, why_closed

    policy = settings.egress.policy()
    destination = parse(url, policy)
    if isinstance(destination, Refusal):
        return _blocked(destination)
    if not addresses:
        return await _resolve(settings, destination)
    for address in addresses:
        refusal = judge_address(address, policy, named=destination.named)
        if refusal is not None:
            return {**_blocked(refusal), "why": why_closed(address, policy), "address": address}
    return {"verdict": "allowed", "addresses": list(addresses)}


def _blocked(refusal: Refusal) -> dict[str, Any]:
    return {"verdict": "blocked", "reason": refusal.name, "why": refusal.why}


async def _resolve(settings: Settings, destination: Destination) -> dict[str, Any]:
    if destination.address is not None:
        return {"verdict": "allowed", "addresses": [destination.address]}
    from pghookd.egress.resolver import AddressRefused, GuardedResolver, NameUnknown

    resolver = GuardedResolver(settings.egress.policy())
    try:
        answers = await resolver.resolve(destination.host, destination.port)
    except AddressRefused as error:
        return _blocked(error.refusal)
    except NameUnknown as error:
        return {"verdict": "unreachable", "reason": "dns", "why": error.strerror}
    finally:
        await resolver.close()
    return {"verdict": "allowed", "addresses": [answer["host"] for answer in answers]}


def _tell_judgement(told: dict[str, Any]) -> None:
    if told["verdict"] == "allowed":
        say(", ".join(told["addresses"]), style="green", label="allowed")
    else:
        say(f"{told['reason']}: {told['why']}", style="red", label=told["verdict"])


# Mails ------------------------------------------------------------------------------------------------------


@cli.group(cls=Group)
def email() -> None:
    """Preview owner emails."""


@email.command("preview")
@click.option("--kind", metavar="K", help="Render only this kind: failing, reminder, warning, disabled, ...")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write KIND.LANGUAGE.txt, .html and .eml to this folder instead of printing the text.",
)
@click.option(
    "--language",
    metavar="L",
    help="Render only this language. Default: English on the terminal, all with --to.",
)
@with_config
@with_json
def email_preview(
    *, kind: str | None, folder: Path | None, language: str | None, config: Path | None, as_json: bool
) -> None:
    """Render every kind of email with sample failures, from your own templates if mail.templates is set."""
    with expected_faults(as_json=as_json):
        settings = load(config)
        from pghookd.owner_mail import samples

        _choice("--kind", kind, samples.NAMES)
        kinds = (kind,) if kind else samples.NAMES
        try:
            shown, faults = samples.preview(settings, kinds, language or (None if folder else "en"))
        except KeyError:
            raise click.BadParameter(
                f"there are no words in {quoted(language)}; add a file words/LANGUAGE.toml to mail.templates.",
                param_hint="--language",
            ) from None
        written = _written(shown, folder) if folder else []
        if as_json:
            told = [
                {"kind": x.name, "language": x.language, "subject": x.subject, "text": x.text} for x in shown
            ]
            click.echo(json_of({"letters": told, "files": written, "faults": faults}))
            sys.exit(NO if faults else DONE)
        for file in written:
            say(file)
        for each in shown if folder is None else ():
            say(f"{each.subject}\n", style="bold", label=each.name)
            say(f"{each.text}\n")
        for fault in faults:
            warn(fault)
        sys.exit(NO if faults else DONE)


def _choice(option: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise click.BadParameter(
            f"unknown value {quoted(value)}; choose {', '.join(known)}.", param_hint=option
        )


def _written(shown: Iterable[Preview], folder: Path) -> list[str]:
    try:
        return [str(file) for each in shown for file in each.write(folder)]
    except OSError as error:
        raise click.BadParameter(
            f"cannot write to {quoted(folder)}: {error.strerror}.", param_hint="--to"
        ) from None
