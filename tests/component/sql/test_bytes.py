"""Erased data is gone from the data folder: its files are searched byte by byte after VACUUM FULL.

WAL, backups and replicas are not searched: they keep copies until they are recycled.
"""

from __future__ import annotations

import json
import secrets

import pytest

from pghookd.postgres import client
from pghookd.runtime.upkeep.maintenance import Duties, tidy
from support.crew import Diary
from support.events import emit

PIECE = 8  # pglz puts a byte between eight literals: only pieces of the marker are found in compressed values
TABLES = """select oid::regclass::text as name, relname from pg_class
where relnamespace = 'webhooks'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1"""
COLUMNS = """select attname, atttypid::regtype::text as type from pg_attribute
where attrelid = $1::text::regclass and attnum > 0 and not attisdropped and atttypid::regtype::text
  in ('text', 'text[]', 'json', 'jsonb', 'bytea', 'jsonpath')"""
FILES = """select pg_filenode_relation(0, split_part(f.name, '.', 1)::oid)::regclass::text as relation,
  pg_read_binary_file(format('base/%s/%s', d.oid, f.name)) as bytes
from pg_database d, pg_ls_dir('base/' || d.oid) f(name)
where d.datname = current_database() and f.name ~ '^\\d+(\\.\\d+)?$'"""

# The schema's own records, and columns that take only words of pghookd, numbers, or names that the platform chose.
WITHOUT_DATA = {
    "migrations",
    "functions",
    "partitions",
    "shards",
    "upkeep",
    "home",
    "event_types",
    "forgotten",
}
OWN_WORDS = {
    "attempts": {"outcome", "cause"},
    "backlog": {"state", "reason", "cause"},
    "dead": {"reason"},
    "emails": {"kind", "state", "before"},
    "endpoint_revisions": {"actor"},
    "endpoints": {
        "event_types", "disabled_reason", "retry_schedule", "success_statuses",
        "profile", "profile_spec", "secret_kind",
    },
    "erasures": {"actor", "pending"},
    "incidents": {"state", "last_outcome", "marks"},
    "operations": {"actor", "what"},
    "owners": {"suspended_reason"},
    "replays": {"state"},
    "sites": {"language", "time_zone"},
    "unclaimed_events": {"what"},
}  # fmt: skip


SITE_ROWS = """
insert into webhooks.sites (site_id, name, url, owner_email)
values ('{site}', '{text}', 'https://{text}', '{text}@a.example');
insert into webhooks.endpoints (site_id, url, description, secret, previous_secret, previous_secret_until, headers,
  auth, filter)
values ('{site}', 'https://{text}.example/', '{text}', '{text}', 'old{text}', now(), '{{"x-key": "{text}"}}',
  '{{"bearer": {{"token": "{text}"}}}}', '$.a == "{text}"');
insert into webhooks.owners (owner_email, unsubscribe_token) values ('{text}@a.example', '{text}');
insert into webhooks.unclaimed_events (day, what, name, events) values (current_date, 'site', '{site}', 1);
update webhooks.sites set name = 'a {text}' where site_id = '{site}';
update webhooks.endpoints set url = 'https://{text}.example/in' where site_id = '{site}';
select webhooks.mute_owner('{text}@a.example', now());
select webhooks.erase('{site}', '{text}');
select webhooks.replay(site_id => '{site}', dry_run => false)"""
LOG_ROWS = """
insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id, error,
  response, evidence)
select event_id, p.endpoint_id, now(), 1, 1, 'refused', '{site}', 'dns: {text}', convert_to(e.payload ->> 'a', 'UTF8'),
  jsonb_build_object('headers', jsonb_build_object('a', e.payload ->> 'a'))
from webhooks.events e join webhooks.endpoints p using (site_id) where site_id = '{site}' and event_id = any ('{ids}');
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select event_id, endpoint_id, site_id, 'exhausted', 1 from webhooks.attempts where event_id = any ('{ids}')"""
LAST_ROWS = """
update webhooks.endpoints set why = '{text}' where site_id = '{site}';
insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, line)
select event_id, endpoint_id, site_id, 'held', 'disabled', '{text}' from webhooks.attempts
where event_id = any ('{ids}');
insert into webhooks.incidents (endpoint_id, state, first_failure_at, last_failure_at, last_outcome, last_error,
  last_event_id, last_attempt, next_look_at)
select endpoint_id, 'failing', now(), now(), 'refused', 'dns: {text}', 1, 1, now() from webhooks.endpoints
where site_id = '{site}';
insert into webhooks.emails (owner_email, kind, window_start, message_id, subject, digest, error, mailbox, mail_domain)
values ('{text}@a.example', 'failing', now(), '{text}', '{text}',
  '{{"sections": [{{"site_id": "{site}", "response": "{content}"}}]}}', '{text}', '{text}', '{text}');
insert into webhooks.endpoint_hours (hour, endpoint_id, attempts, delivered, slots, counts, site_id)
select now(), endpoint_id, 1, 0, '{{}}', '{{}}', site_id from webhooks.endpoints where site_id = '{site}'"""


@pytest.fixture
def marker():
    """Return 64 hex digits that occur nowhere else."""
    return secrets.token_hex(32)


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute("insert into webhooks.shards (shard, floor) values (0, 9e15)")
    return connection


@pytest.fixture
async def session(database):
    made = await client.connect(database, name="test")
    yield made
    await made.close()


def long(text):
    """Return a text around another that TOAST stores apart, compressed."""
    return secrets.token_hex(3000) + text + 3000 * "x"


async def emit_and_try(con, site, text, content):
    """Insert two events with a text in their columns, one of them large, and an attempt at each; return the ids.

    The content is that of payloads and answers.
    """
    columns = dict.fromkeys(("subject", "ordering_key", "dedupe_key", "supersede_key", "traceparent"), text)
    ids = [
        await emit(con, site=site, kind=f"x{text}", payload=json.dumps({"a": each}), **columns)
        for each in (content, long(content))
    ]
    await con.execute(LOG_ROWS.format(site=site, text=text, ids=set(ids)))
    return ids


async def archive_today(con):
    """Move the tables of today to the archive, and the sequence to the next day."""
    day = await con.fetchval("select webhooks.day_of()")
    for table in ("events", "attempts", "dead"):
        await con.execute(
            f"alter table webhooks.{table} detach partition webhooks.{table}_{day} concurrently"
        )
        await con.execute(f"alter table webhooks.{table}_{day} set schema webhooks_archive")
    await con.execute("select setval('webhooks.events_event_id_seq', $1)", (day + 1) * 2**32)


async def fill(con, *sites):
    """Write rows into every table and the archive, for each site, the text in its rows, and its content."""
    for site, text, content in sites:
        await con.execute(SITE_ROWS.format(site=site, text=text))
        await emit_and_try(con, site, text, content)
    await archive_today(con)
    for site, text, content in sites:
        ids = await emit_and_try(con, site, text, content)
        await con.execute(LAST_ROWS.format(site=site, text=text, content=content, ids=set(ids)))
    await con.execute("analyze")  # statistics hold values as well


async def unmarked(con, text):
    """Return the columns that could hold a text, and do not."""
    found = set()
    for table in await con.fetch(TABLES):
        if table["relname"] in WITHOUT_DATA:
            continue
        for column in await con.fetch(COLUMNS, table["name"]):
            name = column["attname"]
            value = f"encode({name}, 'escape')" if column["type"] == "bytea" else f"{name}::text"
            held = await con.fetchval(
                f"select count(*) from {table['name']} where {value} like '%' || $1 || '%'", text
            )
            if not held:
                found.add((table["relname"], name))
    return found - {(table, name) for table, names in OWN_WORDS.items() for name in names}


async def files_with(con, text):
    """Return the relations of this database in whose files a piece of a text is found."""
    await con.execute("checkpoint")
    pieces = [text[n : n + PIECE].encode() for n in range(len(text) - PIECE + 1)]
    return {
        row["relation"]
        for row in await con.fetch(FILES)
        if row["bytes"] and any(piece in row["bytes"] for piece in pieces)
    }


@pytest.fixture
def finish(con, session, until):
    """Return `await finish(table)`: the daemon ends the work that is a row there, and an operator cleans up."""

    async def over(table):
        await tidy(session, Duties(), logger=Diary().logger, beat=lambda: None)
        return await con.fetchval(f"select count(*) = 0 from webhooks.{table}")

    async def end(table):
        await con.execute(f"update webhooks.{table} set asked_at = now() - interval '1 hour'")
        await until(lambda: over(table))  # transactions of other databases are waited for as well
        await con.execute("analyze")
        await con.execute("vacuum full")

    return end


@pytest.mark.slow
async def test_no_byte_is_left_of_a_site_that_is_forgotten(con, finish, marker):
    other = secrets.token_hex(32)
    await fill(con, (f"site-{marker}", marker, marker), (f"site-{other}", other, other))
    assert await unmarked(con, marker) == set()
    assert len(await files_with(con, marker)) > 30
    await con.execute("select webhooks.forget($1)", f"site-{marker}")
    await finish("forgotten")
    assert await files_with(con, marker) == set()
    assert len(await files_with(con, other)) > 30


@pytest.mark.slow
async def test_no_byte_is_left_of_the_payloads_and_answers_of_a_subject(con, finish, marker):
    other = secrets.token_hex(32)
    await fill(con, ("s", "ada", marker), ("t", "bob", other))
    assert len(await files_with(con, marker)) > 4
    assert await con.fetchval("select webhooks.erase('s', 'ada', 'cancel')") == 4
    await finish("erasures")
    assert await files_with(con, marker) == set()
    assert len(await files_with(con, other)) > 4
