"""Personal data is erased in time: payloads and answers before their records, and everything of a site."""

from __future__ import annotations

import hashlib
import json

import asyncpg
import pytest
import structlog

from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.runtime.upkeep.maintenance import Duties, tidy
from support.crew import living
from support.events import Sql, emit

ERASED = '{"pghookd":"erased"}'
MARKER = "a marker that nobody may see"
PAYLOAD = f'{{"name": "{MARKER}"}}'


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute(
        "insert into webhooks.sites (site_id, name, owner_email) values ('s', 'A shop', 'ada@s.example'),"
        " ('t', 'Another', 'bob@t.example')"
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x'), ('t', 'http://y')"
    )
    await connection.execute("insert into webhooks.shards (shard, floor) values (0, 9e15)")
    return connection


@pytest.fixture
async def session(database, con):
    made = await client.connect(database, name="test")
    yield made
    await made.close()


def of_age(days):
    return {"payload": PAYLOAD, "created_at": Sql(f"now() - make_interval(secs => {days} * 86400)")}


async def endpoint_of(con, site_id="s"):
    return await con.fetchval("select endpoint_id from webhooks.endpoints where site_id = $1", site_id)


async def settle(con, event_id, *, days_ago=0.0, site_id="s", outcome="delivered"):
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id,"
        " response, evidence) values ($1, $2, now() - make_interval(secs => $3 * 86400), 1, 1, $4, $5, 'thanks, Ada',"
        """ '{"headers": {"x-name": "Ada"}}')""",
        event_id,
        await endpoint_of(con, site_id),
        days_ago,
        outcome,
        site_id,
    )


async def queue(con, event_id, site_id="s"):
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
        " values ($1, $2, $3, 'waiting', 'retry', now() + interval '1 hour')",
        event_id,
        await endpoint_of(con, site_id),
        site_id,
    )


async def bury(con, event_id, site_id="s"):
    await con.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " values ($1, $2, $3, 'exhausted', 1)",
        event_id,
        await endpoint_of(con, site_id),
        site_id,
    )


async def payloads(con):
    return [
        row["payload"] for row in await con.fetch("select payload from webhooks.events order by event_id")
    ]


async def rest_is_over(con):
    await con.execute("update webhooks.upkeep set ended_at = '2020-01-01'")


async def tidied(session, **duties):
    await tidy(session, Duties(**duties), logger=structlog.get_logger(), beat=lambda: None)


# Payloads -----------------------------------------------------------------------------------------------------------


async def test_old_payloads_are_erased_and_the_records_stay(con, session):
    old = [await emit(con, **of_age(8)) for _ in range(1200)]  # more than a page
    await settle(con, old[0], days_ago=8)
    young = await emit(con, **{**of_age(6), "payload": '{"n": 1}'})
    await tidied(session, payload_days=7.0)
    assert await payloads(con) == [ERASED] * 1200 + ['{"n": 1}']
    assert await con.fetchval("select last_outcome from webhooks.deliveries where event_id = $1", old[0])
    await tidied(session)  # never, where it is not asked for
    await rest_is_over(con)
    await con.execute(
        "update webhooks.events set created_at = now() - interval '8 days' where event_id = $1", young
    )
    await tidied(session, payload_days=7.0)
    assert await payloads(con) == [ERASED] * 1201


async def test_no_payload_of_an_unsettled_event_is_erased(con, session):
    waiting, gone, unread = [await emit(con, **of_age(8)) for _ in range(3)]
    await queue(con, waiting)
    await con.execute("update webhooks.shards set floor = $1", gone)
    await tidied(session, payload_days=7.0)
    assert [text == ERASED for text in await payloads(con)] == [False, True, False]
    await con.execute("delete from webhooks.backlog; update webhooks.shards set floor = 9e15")
    await tidied(session, payload_days=7.0)  # it rests
    assert (await payloads(con))[0] != ERASED
    await rest_is_over(con)
    await tidied(session, payload_days=7.0)
    assert await payloads(con) == [ERASED] * 3
    assert unread


async def test_an_erased_event_is_never_replayed(con, session):
    old, young = await emit(con, **of_age(8)), await emit(con, **of_age(1))
    for event_id in (old, young):
        await bury(con, event_id)
    await tidied(session, payload_days=7.0)
    asked = "select deliveries from webhooks.replay(site_id => 's', states => $1)"
    for states in (["dead"], ["dead", "delivered", "missed"]):
        assert await con.fetchval(asked, states) == 1
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=f"event {old} cannot be replayed"):
        await con.fetchval("select webhooks.replay(event_ids => $1)", [young, old])
    assert await con.fetchval("select webhooks.replay(event_ids => $1)", [young])


async def test_a_page_waits_for_a_replay_that_is_at_work(con, session, connect, database):
    """Between the read of an event and its row in backlog lies a transaction: its payload is not erased meanwhile."""
    event_id = await emit(con, **of_age(8))
    await bury(con, event_id)
    replay_id = await con.fetchval("select replay_id from webhooks.replay(site_id => 's', dry_run => false)")
    other = await connect(database)
    transaction = other.transaction()
    await transaction.start()
    assert await other.fetchval("select taken from webhooks.advance_replay($1, 10, 10)", replay_id) == 1
    with pytest.raises(client.DatabaseError, match="lock timeout"):
        await session.fetch(query("erase_payloads"), 7.0, 10)
    await transaction.commit()
    await tidied(session, payload_days=7.0)
    assert await payloads(con) == [f'{{"name": "{MARKER}"}}']


# Answers ------------------------------------------------------------------------------------------------------------


async def test_old_answers_are_erased_and_those_that_come_late_too(con, session):
    first, second, third = [await emit(con, payload=PAYLOAD) for _ in range(3)]
    await settle(con, first, days_ago=3)
    await settle(con, second, days_ago=1)
    await queue(con, third)

    async def kept():
        rows = await con.fetch(
            "select event_id from webhooks.attempts where num_nonnulls(response, evidence) > 0 order by 1"
        )
        return [row["event_id"] for row in rows]

    await tidied(session, response_days=2.0)
    assert await kept() == [second]
    await con.execute(
        "update webhooks.attempts set attempted_at = now() - interval '3 days', response = null"
    )
    await settle(con, third, days_ago=3)
    await rest_is_over(con)
    await tidied(session, response_days=2.0)
    assert await kept() == []
    assert await con.fetchval("select count(*) from webhooks.attempts") == 3


# A site -------------------------------------------------------------------------------------------------------------


async def mail(con, owner, *site_ids):
    sections = [{"site_id": each, "site_name": f"shop {each}"} for each in site_ids]
    await con.execute(
        "insert into webhooks.emails (owner_email, kind, window_start, digest, subject, state)"
        " values ($1, 'failing', clock_timestamp(), $2, 'A mail', 'sent')",
        owner,
        json.dumps({"sections": sections}),
    )


async def dump(con):
    """Return every row of every table as one text."""
    tables = await con.fetch(
        "select oid::regclass::text as name from pg_class where relnamespace = 'webhooks'::regnamespace"
        " and relkind in ('r', 'p') and not relispartition"
    )
    rows = [row[0] for each in tables for row in await con.fetch(f"select t::text from {each['name']} t")]
    return "\n".join(rows)


async def test_nothing_is_left_of_a_site_and_all_of_the_others(con, session):
    await con.execute(
        "insert into webhooks.sites (site_id, name, owner_email) values ('mia', 'Mia''s shop', 'Mia@shop.example');"
        "insert into webhooks.endpoints (site_id, url, secret) values ('mia', 'http://mia.example', 'secret of mia');"
        "insert into webhooks.owners (owner_email) values ('mia@shop.example'), ('bob@t.example')"
    )
    endpoint_id = await endpoint_of(con, "mia")
    for site_id in ("mia", "t"):
        for _ in range(3):
            event_id = await emit(con, site=site_id, payload=f'{{"by": "{site_id}"}}')
            await settle(con, event_id, site_id=site_id)
            await bury(con, event_id, site_id)
            await queue(con, event_id, site_id)
    await mail(con, "mia@shop.example", "mia")
    await mail(con, "bob@t.example", "t")
    await mail(con, "operator@platform.example", "mia", "t")
    await mail(con, "operator@platform.example", "mia")
    await con.execute("select webhooks.mute_owner('mia@shop.example', now())")
    await con.execute("select webhooks.snooze_endpoint($1, now())", endpoint_id)
    await con.execute("select webhooks.replay(site_id => 'mia', dry_run => false)")
    assert await con.fetchval("select webhooks.forget('mia')") == 1 + 1 + 4 * 3 + 1 + 1 + 1
    assert await con.fetchval("select state from webhooks.replays") == "cancelled"
    await con.execute("update webhooks.forgotten set asked_at = now() - interval '1 hour'")
    await tidied(session)
    left = await dump(con)
    assert "mia" not in left.lower()
    digest = hashlib.sha256(b"mia").hexdigest()
    told = await con.fetch("select what, detail from webhooks.operations where what like 'forg%' order by at")
    assert [(row["what"], json.loads(row["detail"])["site_sha256"]) for row in told] == [
        ("forget", digest),
        ("forgotten", digest),
    ]
    for table, count in (
        ("events", 3),
        ("attempts", 3),
        ("dead", 3),
        ("backlog", 3),
        ("emails", 2),
        ("owners", 1),
    ):
        assert await con.fetchval(f"select count(*) from webhooks.{table}") == count, table
    assert await con.fetchval("select webhooks.forget('nobody')") == 0
    with pytest.raises(asyncpg.NullValueNotAllowedError):
        await con.execute("select webhooks.forget(null)")


async def test_the_operators_mails_forget_a_site(con):
    for site_ids in (("t",), ("t", "u")):
        await con.execute(
            "insert into webhooks.emails (owner_email, kind, window_start, digest)"
            " values ('ops@platform.example', 'faults', clock_timestamp(), $1)",
            json.dumps({"sections": [], "faults": [{"site_id": each} for each in site_ids]}),
        )
    await con.execute("select webhooks.forget('t')")
    digest = await con.fetchval("select digest from webhooks.emails")
    assert [each["site_id"] for each in json.loads(digest)["faults"]] == ["u"]


async def test_an_owner_of_two_sites_stays_until_the_second_is_forgotten(con):
    await con.execute(
        "insert into webhooks.sites (site_id, name, owner_email) values ('u', 'Third', 'BOB@t.example')"
    )
    await con.execute("insert into webhooks.owners (owner_email) values ('bob@t.example')")
    await mail(con, "bob@t.example", "t", "u")
    await mail(con, "bob@t.example", "t")
    await con.execute("select webhooks.forget('t')")
    digest = await con.fetchval("select digest from webhooks.emails")
    assert [each["site_id"] for each in json.loads(digest)["sections"]] == ["u"]
    assert await con.fetchval("select count(*) from webhooks.owners") == 1
    await con.execute("select webhooks.forget('u')")
    assert await con.fetchval("select count(*) from webhooks.emails") == 0
    assert await con.fetchval("select count(*) from webhooks.owners") == 0


async def test_events_in_flight_are_erased_by_the_second_walk(con, session, connect, database):
    """A producer that has not committed, an attempt that is recorded afterwards, a row in the daemon's hand."""
    event_id, held = [await emit(con, site="t", payload=PAYLOAD) for _ in range(2)]
    await queue(con, held, "t")
    endpoint_id = await endpoint_of(con, "t")
    producer, daemon = await connect(database), await connect(database)
    inserting, holding = producer.transaction(), daemon.transaction()
    await inserting.start()
    await emit(producer, site="t", payload=PAYLOAD)
    await holding.start()
    await daemon.execute("select from webhooks.backlog for update")
    await con.execute("select webhooks.forget('t')")
    assert await con.fetchval("select count(*) from webhooks.backlog") == 1
    await con.execute("update webhooks.forgotten set asked_at = now() - interval '1 hour'")
    await tidied(session)
    assert await con.fetchval("select walk from webhooks.forgotten") == 2  # the producer is open
    await inserting.commit()
    await holding.commit()
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        " values ($1, $2, now(), 1, 1, 'delivered', 't')",
        event_id,
        endpoint_id,
    )
    await tidied(session)
    for table in ("events", "attempts", "backlog", "forgotten"):
        assert await con.fetchval(f"select count(*) from webhooks.{table} where site_id = 't'") == 0, table


async def test_a_large_site_is_erased_in_pages_while_producers_insert(con, session, connect, database):
    await emit(con, 6000, site=["s", "t"])
    producer = await connect(database, server_settings={"lock_timeout": "100ms"})
    forgetting = con.transaction()
    await forgetting.start()
    assert await con.fetchval("select webhooks.forget('s')") > 0
    await emit(producer, site="t", payload=PAYLOAD)  # nobody waits
    await emit(producer, payload=PAYLOAD)
    await forgetting.commit()
    await con.execute("update webhooks.forgotten set asked_at = now() - interval '1 hour'")
    await tidied(session)
    rows = await con.fetch("select site_id, count(*) as n from webhooks.events group by 1")
    assert {row["site_id"]: row["n"] for row in rows} == {"t": 6001}


async def test_a_daemon_stops_sending_to_a_site_that_is_forgotten(con, database, receiver, until):
    await con.execute("delete from webhooks.shards")
    await con.execute("update webhooks.endpoints set url = $1 where site_id = 's'", receiver.url("/in"))
    async with living(database, retry={"schedule": (0.5,) * 50}) as life:
        await emit(con, payload=PAYLOAD)
        await until(lambda: receiver.requests)
        await until(lambda: con.fetchval("select count(*) = 1 from webhooks.attempts"))
        await con.execute("select webhooks.forget('s')")
        await emit(con, payload=PAYLOAD)
        await emit(con, site="t", payload=PAYLOAD)
        await until(lambda: con.fetchval("select count(*) > 0 from webhooks.attempts where site_id = 't'"))
        assert len(receiver.requests) == 1
        assert not life.diary.of("database.refused")


async def test_archived_days_forget_a_site_as_well(con, session):
    event_id, other = await emit(con, payload=PAYLOAD), await emit(con, site="t", payload=PAYLOAD)
    for each, site in ((event_id, "s"), (other, "t")):
        await settle(con, each, site_id=site)
        await bury(con, each, site)
    day = event_id // 2**32
    for table in ("events", "attempts", "dead"):
        await con.execute(
            f"alter table webhooks.{table} detach partition webhooks.{table}_{day} concurrently"
        )
        await con.execute(f"alter table webhooks.{table}_{day} set schema webhooks_archive")
    await con.execute("select webhooks.forget('s')")
    await con.execute("update webhooks.forgotten set asked_at = now() - interval '1 hour'")
    await tidied(session)
    for table in ("events", "attempts", "dead"):
        left = await con.fetch(f"select event_id from webhooks_archive.{table}_{day}")
        assert [row["event_id"] for row in left] == [other]
    assert (
        await con.fetchval("select detail ->> 'rows' from webhooks.operations where what = 'forgotten'")
        == "3"
    )


# A subject ----------------------------------------------------------------------------------------------------------

ADA = "contact/ada"


async def of_ada(con, **columns):
    return await emit(con, **{"payload": PAYLOAD, "subject": ADA, **columns})


async def receipts(con):
    rows = await con.fetch("select detail from webhooks.operations where what = 'erased'")
    return [json.loads(row["detail"]) for row in rows]


async def is_over(con):
    """Pretend that the two minutes are over after which the daemon checks once more."""
    await con.execute("update webhooks.erasures set asked_at = now() - interval '1 hour'")


async def test_a_subjects_payloads_and_answers_are_erased_and_nobody_elses(con, session):
    ours = [await of_ada(con) for _ in range(3)]
    others = [
        await of_ada(con, subject="contact/ada/2"), await of_ada(con, site="t"), await of_ada(con, subject=None),
    ]  # fmt: skip
    for event_id in (*ours, others[0]):
        await settle(con, event_id)
    assert await con.fetchval("select webhooks.erase('s', $1)", ADA) == 3
    rows = await con.fetch("select event_id, payload from webhooks.events order by 1")
    assert [row["event_id"] for row in rows if row["payload"] == ERASED] == ours
    answered = await con.fetch(
        "select event_id from webhooks.attempts where num_nonnulls(response, evidence) > 0"
    )
    assert [row["event_id"] for row in answered] == [others[0]]
    assert await receipts(con) == []
    await is_over(con)
    await tidied(session)
    digest = hashlib.sha256(ADA.encode()).hexdigest()
    assert await receipts(con) == [{"site_id": "s", "subject_sha256": digest, "events": 3, "answers": 3}]
    assert await con.fetchval("select count(*) from webhooks.erasures") == 0


async def test_a_pending_event_is_delivered_before_it_is_erased(con, session):
    waiting, unread = await of_ada(con), await of_ada(con)
    await queue(con, waiting)
    await con.execute("update webhooks.shards set floor = $1", waiting)
    assert await con.fetchval("select webhooks.erase('s', $1)", ADA) == 0
    await is_over(con)
    await tidied(session)
    assert await payloads(con) == [PAYLOAD, PAYLOAD]
    await con.execute("delete from webhooks.backlog")
    await settle(con, waiting)
    await tidied(session)
    assert await payloads(con) == [ERASED, PAYLOAD]
    assert await receipts(con) == []
    await con.execute("update webhooks.shards set floor = $1", unread)
    await tidied(session)
    assert await payloads(con) == [ERASED, ERASED]
    assert [each["events"] for each in await receipts(con)] == [2]


async def test_a_pending_event_is_given_up_if_the_caller_wants_that(con):
    event_id = await of_ada(con)
    await queue(con, event_id)
    assert await con.fetchval("select webhooks.erase('s', $1, 'cancel')", ADA) == 1
    assert await payloads(con) == [ERASED]
    assert await con.fetchval("select reason from webhooks.dead") == "cancelled"


async def test_an_event_that_comes_later_is_not_erased(con, session):
    await of_ada(con)
    await con.execute("select webhooks.erase('s', $1)", ADA)
    await of_ada(con)
    await is_over(con)
    await tidied(session)
    assert await payloads(con) == [ERASED, PAYLOAD]


async def test_a_producer_that_was_open_is_waited_for(con, session, connect, database):
    producer = await connect(database)
    await producer.execute("begin")
    await of_ada(producer)
    await con.execute("select webhooks.erase('s', $1)", ADA)
    await is_over(con)
    await tidied(session)
    assert await receipts(con) == []
    await producer.execute("commit")
    await tidied(session)
    assert await payloads(con) == [ERASED]
    assert [each["events"] for each in await receipts(con)] == [1]


async def test_archived_days_are_erased_as_well(con):
    event_id = await of_ada(con)
    await settle(con, event_id)
    day = event_id // 2**32
    for table in ("events", "attempts", "dead"):
        await con.execute(
            f"alter table webhooks.{table} detach partition webhooks.{table}_{day} concurrently"
        )
        await con.execute(f"alter table webhooks.{table}_{day} set schema webhooks_archive")
    assert await con.fetchval("select webhooks.erase('s', $1)", ADA) == 1
    assert await con.fetchval(f"select payload from webhooks_archive.events_{day}") == ERASED
    row = await con.fetchrow(f"select response, evidence from webhooks_archive.attempts_{day}")
    assert tuple(row) == (None, None)


async def test_an_erasure_says_what_it_wants(con):
    with pytest.raises(asyncpg.NullValueNotAllowedError):
        await con.execute("select webhooks.erase('s', null)")
    with pytest.raises(asyncpg.InvalidParameterValueError, match="pending is deliver or cancel, not keep"):
        await con.execute("select webhooks.erase('s', 'x', 'keep')")
