"""Checks for everything that would keep the daemon from working, and reports all of it at once.

Each probe is independent: a probe that Postgres refuses is itself a finding and does not hide the others.

Never here: repairs. A finding is reported with the command that helps, and nothing is changed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from pghookd.egress.tls import anchors
from pghookd.encryption.keyring import Vault, revealing
from pghookd.event_log import former_server
from pghookd.event_log.doorbell import HOLDERS_NAMED, QUEUE_SHARE_MAX
from pghookd.event_log.identity import Here, why_foreign, why_moved
from pghookd.event_log.position import Snapshot
from pghookd.event_log.rows import endpoint_of, holder_of, server_of, shard_of, stay_of
from pghookd.model.day import date_of
from pghookd.owner_mail import samples
from pghookd.postgres import client, lock_keys, migrate
from pghookd.postgres.client import POOLER, DatabaseAway, DatabaseError, Session, Unfit, query
from pghookd.process.host_id import host_id
from pghookd.settings.schema import Settings
from pghookd.webhook.envelope import timestamp_text
from pghookd.webhook.prepared import Defaults, PreparedEndpoint

POSTGRES_LEAST: Final = 140_000  # server_version_num
OLD_DAYS_NAMED: Final = 10
EXPIRES_SOON_S: Final = 14 * 86400.0  # before the end of a client certificate

# The privileges that the daemon's role needs on each table.
NEEDS: Final = {
    "attempts": ("select", "insert"),
    "backlog": ("select", "insert", "update", "delete"),
    "dead": ("select", "insert", "delete"),
    "endpoints": ("select", "update"),
    "events": ("select",),
    "functions": ("select",),
    "home": ("select", "insert", "update"),
    "migrations": ("select",),
    "operations": ("insert",),
    "partitions": ("select", "insert"),
    "shards": ("select", "insert", "update", "delete"),
    "sites": ("select",),
}


class Grade(enum.StrEnum):
    """The severity of a finding."""

    SETTINGS = "settings"  # the settings are wrong
    BLOCKED = "blocked"  # no database, or no usable schema
    FAULT = "fault"  # the daemon would not work, or not well
    WARNING = "warning"  # it works; the operator should know
    FINE = "ok"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        grade: its severity.
        what: settings, letters, tls, database, schema, privileges, row_security, home, shards, days, endpoints,
            secrets, two_phase, notifications, pooler or locks.
        text: a sentence for the operator.
    """

    grade: Grade
    what: str
    text: str


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 78 for settings, 3 for no usable database or schema, 1 for other faults, else 0."""
    grades = {finding.grade for finding in findings}
    for grade, status in ((Grade.SETTINGS, 78), (Grade.BLOCKED, 3), (Grade.FAULT, 1)):
        if grade in grades:
            return status
    return 0


async def check(settings: Settings, wall_s: Callable[[], float] = time.time) -> list[Finding]:
    """Check what the settings name, above all the database; never raise for a fault found there."""
    return [*_letters(settings), *_trust(settings), *await _database(settings, wall_s())]


def _trust(settings: Settings) -> list[Finding]:
    """Check that there are trust anchors: without them every https endpoint fails."""
    try:
        found = anchors(settings.egress.ca_file or None)
    except OSError as error:
        return [Finding(Grade.FAULT, "tls", f"egress.ca_file cannot be used: {error.strerror or error}")]
    if found:
        return [Finding(Grade.FINE, "tls", "system CA certificates found")]
    text = "no system CA certificates found, so no https endpoint can be verified: install ca-certificates"
    return [Finding(Grade.WARNING, "tls", text)]


def _letters(settings: Settings) -> list[Finding]:
    """Render the operator's own templates once; the daemon replaces broken ones with its own."""
    if not settings.mail.templates:
        return []
    _, faults = samples.preview(settings)
    told = [
        Finding(Grade.WARNING, "letters", f"{fault}; the built-in one is used instead") for fault in faults
    ]
    return told or [
        Finding(Grade.FINE, "letters", f"{settings.mail.templates}: every kind of email can be rendered")
    ]


async def _database(settings: Settings, now_s: float) -> list[Finding]:
    url = settings.database.url.get_secret_value()
    try:
        session = await client.connect(url, name="check", settings=_BOUNDS, writable=False)
    except DatabaseAway as error:
        return [Finding(Grade.BLOCKED, "database", f"cannot be reached: {error}")]
    except Unfit as error:
        return [Finding(Grade.SETTINGS, "pooler", str(error))]
    try:
        return [found async for found in _probe_all(session, settings, url, now_s)]
    except Unfit as error:  # all other findings came through the pooler
        return [Finding(Grade.SETTINGS, "pooler", str(error))]
    except DatabaseAway as error:
        return [Finding(Grade.BLOCKED, "database", f"was lost: {error}")]
    except DatabaseError as error:
        return [Finding(Grade.FAULT, "database", f"cannot be checked: {error}")]
    finally:
        await session.close()


_BOUNDS: Final = {"statement_timeout": "10s", "lock_timeout": "2s", "search_path": "pg_catalog"}
_Probe = Callable[[Session, Settings], AsyncIterator[Finding]]


async def _probe_all(session: Session, settings: Settings, url: str, now_s: float) -> AsyncIterator[Finding]:
    general: list[tuple[str, _Probe]] = [
        ("database", _server),
        ("two_phase", _two_phase),
        ("locks", _locks),
        ("notifications", _notifications),
    ]
    inside: list[tuple[str, _Probe]] = [
        ("schema", _schema),
        ("privileges", _privileges),
        ("row_security", _row_security),
        ("home", _home),
        ("shards", _shards),
        ("days", _days),
        ("endpoints", functools.partial(_endpoints, now_s=now_s)),
        ("secrets", _secrets),
    ]
    for what, probe in general:
        async for finding in _guarded(what, probe, session, settings):
            yield finding
    async for finding in _pooler(session, url):
        yield finding
    if not await session.fetchval("select to_regnamespace('webhooks') is not null"):
        yield Finding(Grade.BLOCKED, "schema", "there is no schema webhooks: run pghookd migrate")
        return
    if not await session.fetchval("select has_schema_privilege('webhooks', 'usage')"):
        yield await _no_usage(session)
        return
    for what, probe in inside:
        async for finding in _guarded(what, probe, session, settings):
            yield finding


async def _guarded(what: str, probe: _Probe, session: Session, settings: Settings) -> AsyncIterator[Finding]:
    try:
        async for finding in probe(session, settings):
            yield finding
    except DatabaseError as error:
        yield Finding(Grade.FAULT, what, f"cannot be checked: {error}")


async def _no_usage(session: Session) -> Finding:
    role = await session.fetchval("select current_user")
    return Finding(
        Grade.FAULT, "privileges", f"role {role} may not use the schema webhooks: {_REMEDY.format(role)}"
    )


_REMEDY: Final = "run pghookd migrate --roles, then GRANT webhooks_daemon TO {}"


# Any database -----------------------------------------------------------------------------------------------


async def _server(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    row = await session.fetchrow(
        "select version() as version, current_setting('server_version_num')::int as number,"
        " pg_is_in_recovery() as in_recovery, current_database() as name, current_user as role"
    )
    if row is None:
        return
    for product in ("CockroachDB", "YugabyteDB", "-YB-"):
        if product in row["version"]:
            yield Finding(
                Grade.FAULT, "database", f"{row['version']}: its advisory locks are not those of Postgres"
            )
    if row["number"] < POSTGRES_LEAST:
        yield Finding(Grade.FAULT, "database", f"{row['version']}: Postgres 14 or later is needed")
    if row["in_recovery"]:
        yield Finding(Grade.FAULT, "database", "this is a standby: the log can only be read on the primary")
    yield Finding(Grade.FINE, "database", f"{row['name']} answers, as role {row['role']}: {row['version']}")


async def _two_phase(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    count = await session.fetchval("select current_setting('max_prepared_transactions')::int")
    if count:
        yield Finding(
            Grade.WARNING,
            "two_phase",
            f"max_prepared_transactions is {count}: PREPARE TRANSACTION fails after an insert into events while"
            " the daemon sleeps, unless webhooks.bell is off. For such a producer run, as a superuser, ALTER ROLE"
            " its_login SET webhooks.bell = off, or let it connect with options='-c webhooks.bell=off'",
        )


async def _locks(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    for row in await session.fetch(query("find_strangers")):
        yield Finding(
            Grade.FAULT,
            "locks",
            f"advisory key ({lock_keys.CLASS}, {row['key']}) is held by backend {row['pid']}"
            f" (role {row['role']}, application {row['application']!r}), which is not pghookd's: {_effect(row['key'])}",
        )


def _effect(key: int) -> str:
    """Return the effect if another session holds the lock."""
    if key > 0:
        return "no instance can own the shards, so nothing is delivered"
    return _EFFECTS.get(key, "the daemon does not use this key")


_EFFECTS: Final = {
    lock_keys.BELL: "the daemon does not sleep, and all producers notify it",
    lock_keys.MIGRATE: "pghookd migrate waits",
    lock_keys.BELL_KEEPER: "the daemon does not sleep",
    lock_keys.MAINTENANCE: "no partitions are made, and ids stay in the same day",
}


async def _notifications(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    share = await session.fetchval("select pg_notification_queue_usage()")
    if share <= QUEUE_SHARE_MAX:
        return
    rows = await session.fetch(query("find_oldest_transactions"), HOLDERS_NAMED)
    holders = "; ".join(holder_of(row) for row in rows) or "none is visible"
    yield Finding(
        Grade.WARNING,
        "notifications",
        f"Postgres's queue of notifications is {share:.0%} full: when it is full, commits that notify fail. A session"
        f" that listens and stays in a transaction fills it. The oldest transactions: {holders}",
    )


async def _pooler(session: Session, url: str) -> AsyncIterator[Finding]:
    """Detect a pooler in transaction mode by its backends: one for two sessions, or two for one.

    Raises:
        Unfit: if there is such a pooler.
    """
    other = await client.connect(url, name="check", settings=_BOUNDS, writable=False)
    try:
        before = await session.fetchval("select pg_backend_pid()")
        async with other.transaction():
            lent = await other.fetchval("select pg_backend_pid()")
            after = await session.fetchval("select pg_backend_pid()")
    except DatabaseError as error:
        yield Finding(Grade.FAULT, "pooler", f"sessions do not behave as Postgres's own: {error}")
        return
    finally:
        await other.close()
    if lent == before or after != before:
        raise Unfit(POOLER)


# Our schema -------------------------------------------------------------------------------------------------


async def _schema(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    found = await migrate.look(session, migrate.load())
    for fault in found.plan.faults:
        yield Finding(Grade.BLOCKED, "schema", fault)
    older = []
    if found.plan.pending:
        missing = ", ".join(f"{each.version:04}_{each.name}" for each in found.plan.pending)
        older.append(f"without {missing}")
    if found.functions.pending:
        names = ", ".join(each.name for each in found.functions.pending)
        older.append(f"with functions missing or out of date ({names})")
    if older:
        text = f"it is older than this program, {', '.join(older)}: run pghookd migrate"
        yield Finding(Grade.FAULT, "schema", text)
    if found.is_usable:
        newer = ", newer than this program and compatible" if found.plan.newer else ""
        if found.functions.newer:
            newer += f"; of a later version and compatible: {', '.join(found.functions.newer)}"
        yield Finding(Grade.FINE, "schema", f"at migration {found.version:04}{newer}")


async def _privileges(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    pairs = [(table, privilege) for table, privileges in NEEDS.items() for privilege in privileges]
    tables, privileges = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    rows = await session.fetch(
        query("find_lacking_privileges"), tables, privileges, list(migrate.functions_of("webhooks_daemon"))
    )
    role = await session.fetchval("select current_user")
    if rows:
        lacking = ", ".join(row["lacking"] for row in rows)
        yield Finding(Grade.FAULT, "privileges", f"role {role} lacks {lacking}: {_REMEDY.format(role)}")
    else:
        yield Finding(Grade.FINE, "privileges", f"role {role} may do what the daemon does")
    # No role is made a member of a superuser: deliveries work without it, but old days cannot be removed.
    owner = await session.fetchval(query("find_superuser_owner"))
    if owner is not None:
        text = (
            f"the tables belong to the superuser {owner}, so that old days stay: run pghookd migrate --roles"
        )
        yield Finding(Grade.WARNING, "privileges", text)


async def _row_security(session: Session, _settings: Settings) -> AsyncIterator[Finding]:
    tables = await session.fetchval(query("find_hiding_tables"))
    if tables:
        role = await session.fetchval("select current_user")
        yield Finding(
            Grade.FAULT,
            "row_security",
            f"row level security hides rows of {tables} from role {role}: its statements fail, so that no event is"
            " passed over unseen. Exempt the role with ALTER ROLE .. BYPASSRLS, or disable the policies",
        )


async def _home(session: Session, settings: Settings) -> AsyncIterator[Finding]:
    server = await session.fetchrow(query("identify_server"))
    stored = [shard_of(row) for row in await session.fetch(query("read_shards"))]
    now = await session.fetchval("select pg_current_snapshot()")
    newest = await session.fetchval(query("read_newest_event_id"))
    if server is None or server["in_recovery"] or now is None:
        return
    stays = [stay_of(row) for row in await session.fetch(query("read_home"))]
    ours = server_of(server)
    here = Here(host_id(), session.address, ours.started_at_us, settings.database.home)
    answers = await former_server.ask(settings.database.url.get_secret_value(), here, ours, stays)
    why = why_foreign(ours, stored, Snapshot(*now), newest) or why_moved(here, stays, answers)
    if why is not None:
        yield Finding(
            Grade.FAULT,
            "home",
            f"this is not the database the daemon ran in before ({why}): it would deliver nothing."
            " If delivery should continue here, run pghookd adopt",
        )


async def _shards(session: Session, settings: Settings) -> AsyncIterator[Finding]:
    rows, wanted = await session.fetchval(query("count_shards")), settings.delivery.shards
    if rows not in {0, wanted}:
        yield Finding(
            Grade.FAULT,
            "shards",
            f"delivery.shards is {wanted}, but the first run divided the log into {rows}: set it to {rows}",
        )


async def _days(session: Session, settings: Settings) -> AsyncIterator[Finding]:
    if not await session.fetchval(query("has_next_day")):
        text = "no partition takes the next event, so that producers fail: run pghookd migrate"
        yield Finding(Grade.FAULT, "days", text)
    kept = {}
    if settings.retention.days:
        first = await session.fetchval(query("find_today")) - settings.retention.days
        for row in await session.fetch(query("find_old_days"), first, OLD_DAYS_NAMED):
            if reasons := await session.fetchval(query("why_kept"), row["day"]):
                kept[date_of(row["day"])] = ", ".join(reasons)
    if kept:
        days = "; ".join(f"{date} by {reasons}" for date, reasons in kept.items())
        yield Finding(Grade.WARNING, "days", f"older than retention.days, but kept: {days}")


async def _endpoints(session: Session, settings: Settings, *, now_s: float) -> AsyncIterator[Finding]:
    """Prepare every endpoint with special options as the daemon would; report what it cannot use."""
    defaults = Defaults.of(settings, revealing(Vault.of(settings)))
    ids = [row["endpoint_id"] for row in await session.fetch(query("find_special_endpoints"))]
    found = [endpoint_of(row) for row in await session.fetch(query("read_endpoints"), ids, 1)]
    for endpoint in sorted(found, key=lambda each: each.endpoint_id):
        try:
            prepared = PreparedEndpoint.of(endpoint, defaults)
        except ValueError as error:
            text = f"deliveries to endpoint {endpoint.endpoint_id} end dead, as invalid: {error}"
            yield Finding(Grade.FAULT, "endpoints", text)
        else:
            if prepared.fault is not None:
                text = f"secrets.key does not open its {prepared.fault.error}"
                text = f"deliveries to endpoint {endpoint.endpoint_id} fail: {text}"
                yield Finding(Grade.FAULT, "endpoints", text)
            elif prepared.auth is not None and prepared.auth.certificate is not None:
                ends_at_s = prepared.auth.certificate.ends_at_s
                if ends_at_s - now_s < EXPIRES_SOON_S:
                    when = timestamp_text(int(ends_at_s) * 1_000_000)
                    text = f"the client certificate of endpoint {endpoint.endpoint_id} expires at {when}"
                    yield Finding(Grade.WARNING, "endpoints", text)


async def _secrets(session: Session, settings: Settings) -> AsyncIterator[Finding]:
    """Report how secrets are stored: any reader of a database dump can read those in plain text."""
    plain, sealed = (await session.fetch(query("count_encrypted")))[0]
    has_key = Vault.of(settings) is not None
    if plain and not has_key:
        text = f"{plain} endpoints have their secrets or auth in plain text: with secrets.key they would be encrypted"
        yield Finding(Grade.WARNING, "secrets", text)
    elif plain:
        text = f"{plain} endpoints have secrets or auth in plain text still: pghookd run encrypts them within seconds"
        yield Finding(Grade.WARNING, "secrets", text)
    elif sealed:
        yield Finding(Grade.FINE, "secrets", f"all secrets are encrypted, those of {sealed} endpoints")
