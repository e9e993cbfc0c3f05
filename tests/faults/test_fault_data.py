"""Rows that no constraint would let in, and rows that go while they are needed: each harms itself alone."""

from __future__ import annotations

import pytest

from support import checker
from support.daemon import BOUNDED
from support.events import Sql, emit

DROP_CHECKS = """
do $$ declare c record; begin
  for c in select conrelid::regclass as of_table, conname from pg_constraint
    where contype = 'c' and coninhcount = 0 and conrelid::regclass::text ~ '^webhooks[.](endpoints|events|sites)$'
  loop execute format('alter table %s drop constraint %I', c.of_table, c.conname); end loop;
end $$;
alter table webhooks.endpoints disable trigger endpoints_types_checked
"""

# Values of an endpoint without constraints: column and value. The neighbour's deliveries must not notice.
NONSENSE = [
    ("url", "''"),
    ("url", "'http://[::1'"),
    ("url", "'http://127.0.0.1:99999/'"),
    ("url", "E'http://127.0.0.1/\\r\\nx: y'"),
    ("url", "'http://' || repeat('a', 5000) || '.example/'"),
    ("url", "E'http://\\u0001/'"),
    ("event_types", "'{}'"),
    ("event_types", "array[null, '*']::text[]"),
    ("event_types", "array[repeat('x', 100000), '*']"),
    ("secret", "''"),
    ("secret", "'whsec_'"),
    ("secret", "'whsk_AAAA'"),
    ("secret", "'enc:v1:nobody:AAAA'"),
    ("secret", "repeat('x', 1000000)"),
    ("concurrency", "0"),
    ("concurrency", "-5"),
    ("concurrency", "2147483647"),
    ("rate_per_s", "0"),
    ("rate_per_s", "-1"),
    ("rate_per_s", "'NaN'"),
    ("rate_per_s", "'infinity'"),
    ("rate_per_s", "1e-30"),
    ("timeout_s", "0"),
    ("timeout_s", "-1"),
    ("timeout_s", "'NaN'"),
    ("timeout_s", "'infinity'"),
    ("retry_schedule", "''"),
    ("retry_schedule", "'never'"),
    ("retry_schedule", "'1s,,-2h'"),
    ("retry_schedule", "repeat('1s,', 100000) || '1s'"),
    ("success_statuses", "'500-200'"),
    ("success_statuses", "'all'"),
    ("headers", "'[]'"),
    ("headers", "'\"x\"'"),
    ("headers", '\'{"host": "inner.example"}\''),
    ("headers", """E'{"x": "a\\\\r\\\\nhost: inner"}'"""),
    ("headers", '\'{"x": {"y": 1}}\''),
    ("headers", """'{"": ""}'"""),
    ("profile", "'unheard of'"),
    ("profile", "''"),
    ("profile", "'custom'"),
    ("profile_spec", "'[1, 2]'"),
    ("profile, profile_spec", "'custom', '{\"algorithm\": 7}'"),
    ("profile, profile_spec", '\'custom\', \'{"header": "x", "signed": "{nothing}"}\''),
    ("previous_secret, previous_secret_until", "'whsec_!', 'infinity'"),
    ("previous_secret", "'x'"),
    ("filter", "'$.a.b.c ? (@ like_regex \"(a+)+$\")'"),
    ("auth", "'[]'"),
    ("created_at", "'-infinity'"),
    ("disabled_at", "'infinity'"),
    ("snoozed_until", "'infinity'"),
    ("description", "repeat(E'\\u202e', 100000)"),
]


async def _flows(db, until, count):
    """Wait until the neighbour, the endpoint with the lowest number, has so many deliveries."""
    sql = (
        "select count(*) from webhooks.attempts where outcome = 'delivered'"
        " and endpoint_id = (select min(endpoint_id) from webhooks.endpoints)"
    )

    async def there():
        return await db.fetchval(sql) >= count

    await until(there, 15)


@pytest.mark.short
async def test_endpoints_with_nonsense_written_past_the_constraints(database, db, start, receiving, until):
    """One after another while it works, then all of them at once while it starts."""
    await db.execute(DROP_CHECKS)
    daemon = await start(database, retry_schedule="0.2s,0.2s", **BOUNDED)
    async with receiving(db, "answers:lively") as running:
        for count, (columns, values) in enumerate(NONSENSE, 1):
            more, place = ("", "") if columns == "url" else (", url", f", '{running.url('/nonsense')}'")
            await db.execute(
                f"insert into webhooks.endpoints (site_id, {columns}{more}) values ('s', {values}{place})"
            )
            await emit(db)
            await _flows(db, until, count)
        assert not daemon.said("database.lost")
        daemon.stop()
        assert await daemon.ended(30) == 0
        again = await start(database, retry_schedule="0.2s,0.2s", **BOUNDED)
        await emit(db, 5)
        await _flows(db, until, len(NONSENSE) + 5)
        assert not daemon.said("delivery.broken")
        assert not again.said("delivery.broken")
        failed = await db.fetch("select distinct error from webhooks.attempts where outcome = 'failed'")
        assert [row["error"] for row in failed] == ["secret"], "one that no key opens is our own fault"
        smuggled = [entry for entry in running.entries() if entry["path"] not in ("/1", "/nonsense")]
        assert not smuggled
    assert not daemon.noise
    assert not again.noise


@pytest.mark.parametrize("column", ["created_at", "deliver_after", "deliver_before"])
@pytest.mark.parametrize("value", ["infinity", "-infinity", "294276-12-31", "4713-01-01 BC"])
async def test_events_at_the_ends_of_time(database, db, start, receiving, until, column, value):
    await db.execute(DROP_CHECKS)
    daemon = await start(database, **BOUNDED)
    async with receiving(db):
        await emit(db, **{column: Sql(f"'{value}'")})
        await emit(db, 10)
        await _flows(db, until, 10)
        daemon.stop()
        assert await daemon.ended(30) == 0
        again = await start(database, **BOUNDED)
        await emit(db, 10)
        await _flows(db, until, 20)
        assert not daemon.said("database.lost")
        assert not again.said("database.lost")
    assert not daemon.noise
    assert not again.noise


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("subject", "''"),
        ("type", "''"),
        ("type", "repeat('a', 100000)"),
        ("ordering_key", "''"),
        ("ordering_key", "repeat('k', 100000)"),
        ("dedupe_key", "''"),
        ("supersede_key", "''"),
        ("traceparent", "E'x\\r\\nhost: inner'"),
        ("traceparent", "repeat('a', 100000)"),
        ("endpoint_id", "-1"),
    ],
)
async def test_events_with_nonsense_written_past_the_constraints(
    database, db, start, receiving, until, column, value
):
    await db.execute(DROP_CHECKS)
    daemon = await start(database, **BOUNDED)
    async with receiving(db) as running:
        await emit(db, **{"kind" if column == "type" else column: Sql(value)})
        await emit(db, 10)
        await _flows(db, until, 10)
        assert all(entry["status"] == 200 for entry in running.entries())
    assert not daemon.said("database.lost")
    assert not daemon.noise


# Rows that go while they are needed -------------------------------------------------------------------------------


async def test_events_are_deleted_while_they_wait(database, db, start, receiving, until, delivered):
    """As if somebody cleans up by hand: unreadable events are not sent, and nothing else is harmed."""
    daemon = await start(database, retry_schedule="0.5s,0.5s,0.5s", **BOUNDED)
    async with receiving(db, "answers:fickle", 2) as running:
        for _ in range(5):
            await emit(db, 200)
            await until(lambda: db.fetchval("select exists (select from webhooks.backlog)"), 10)
            await db.execute(
                "delete from webhooks.events where event_id in (select event_id from webhooks.backlog)"
            )
        rest = "select not exists (select from webhooks.backlog)"
        await until(lambda: db.fetchval(rest), 30)
        kept = await db.fetchval("select count(*) from webhooks.events")
        done = (
            "select count(*) from webhooks.events e where 2 = (select count(*) from webhooks.attempts a"
            " where a.event_id = e.event_id and a.outcome = 'delivered')"
            " or exists (select from webhooks.dead d where d.event_id = e.event_id)"
        )
        await until(lambda: db.fetchval(f"select ({done}) = {kept}"), 20)
        assert len(running.entries()) > 1000
    assert not daemon.said("database.lost")
    assert not daemon.noise


async def test_endpoints_change_and_go_ten_times_a_second(database, db, start, receiving, until):
    """Secrets are rotated, URLs change, endpoints are switched and deleted: each request is of one piece."""
    daemon = await start(database, retry_schedule="0.2s,0.2s,0.2s", **BOUNDED)
    async with receiving(db, "answers:lively", 4) as running:
        ids = [row[0] for row in await db.fetch("select endpoint_id from webhooks.endpoints order by 1")]
        stays, turns, moves, goes = ids
        for n in range(30):
            await emit(db, 20)
            await db.execute("select webhooks.rotate_secret($1)", turns)
            await db.execute(
                "update webhooks.endpoints set url = $2 where endpoint_id = $1",
                moves,
                running.url(f"/moved/{n}"),
            )
            await db.execute(
                "update webhooks.endpoints set enabled = not enabled where endpoint_id = $1", goes
            )
            await until(lambda n=n: len(running.entries()) > n * 40, 10)
        await db.execute("delete from webhooks.endpoints where endpoint_id = $1", goes)
        whole = "select count(*) = 1800 from webhooks.attempts where outcome = 'delivered' and endpoint_id = any($1)"
        await until(lambda: db.fetchval(whole, [stays, turns, moves]), 30)
        assert await db.fetchval("select count(*) from webhooks.backlog where endpoint_id <> $1", goes) == 0
        twice = (
            "select count(*) from (select from webhooks.attempts where outcome = 'delivered'"
            " group by event_id, endpoint_id having count(*) > 1) t"
        )
        assert await db.fetchval(twice) == 0
    assert not daemon.said("database.lost")
    assert not daemon.noise


@pytest.mark.parametrize(
    "payload",
    [
        "[" * 6000 + "]" * 6000,
        '{"a":' * 6000 + "1" + "}" * 6000,
        '{"a": 1, "a": [2], "a": "\\u0000", "a": "\\udfff"}',
    ],
    ids=["deep arrays", "deep objects", "the same key"],
)
@pytest.mark.parametrize("profile", ["standard", "plain"])
async def test_json_that_parsers_stumble_over(database, db, start, receiving, delivered, payload, profile):
    daemon = await start(database, **BOUNDED)
    async with receiving(db) as running:
        await db.execute("update webhooks.endpoints set profile = $1", profile)
        await emit(db, payload=payload)
        await delivered(db, 1)
        if profile == "standard":
            await checker.check(db, running.entries(), repeats_max=0)
    assert not daemon.noise
