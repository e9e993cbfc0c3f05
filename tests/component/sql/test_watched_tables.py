"""Triggers of `emit_changes`: they make events of a table's changes, and never break the application's statement."""

from __future__ import annotations

import json

import asyncpg
import pytest

EMIT = "execute function webhooks.emit_changes('shop', 'thing_created', 'thing_updated')"
ROWS = "referencing new table as new_rows for each statement"


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute("create table things (id int primary key, shop text, name text, token text)")
    return connection


@pytest.fixture
def warnings(con):
    heard = []
    con.add_log_listener(lambda _, message: heard.append(f"{message.severity}: {message.message}"))
    return heard


async def events(con):
    rows = await con.fetch("select site_id, type, payload from webhooks.events order by event_id")
    return [(row["site_id"], row["type"], json.loads(row["payload"])) for row in rows]


async def use(con):
    """Change the table in every way; return how many rows are there then."""
    await con.execute("insert into things values (1, 's', 'a', 'secret'), (2, 's', 'b', 'secret')")
    await con.execute("update things set name = 'c' where id = 1")
    await con.execute("delete from things where id = 2")
    return await con.fetchval("select count(*) from things")


# watch_table ----------------------------------------------------------------------------------------------------------


async def test_a_watched_table_makes_events(con, warnings):
    await con.execute("select webhooks.watch_table('things', 'shop', 'thing', '{token}')")
    assert await use(con) == 1
    assert await events(con) == [
        ("s", "thing_created", {"id": 1, "shop": "s", "name": "a"}),
        ("s", "thing_created", {"id": 2, "shop": "s", "name": "b"}),
        ("s", "thing_updated", {"id": 1, "shop": "s", "name": "c"}),
    ]
    assert warnings == []


async def test_a_table_that_is_watched_again_has_the_new_triggers(con):
    await con.execute("select webhooks.watch_table('things', 'shop', 'thing')")
    await con.execute("select webhooks.watch_table('things', 'shop', 'item', '{token,name}')")
    await con.execute("insert into things values (1, 's', 'a', 'secret')")
    assert await events(con) == [("s", "item_created", {"id": 1, "shop": "s"})]


async def test_tables_and_columns_of_any_name_are_watched(con):
    await con.execute(
        """create schema "Sh%p"; create table "Sh%p"."The %s" ("a%I" text, "it's" int, "100%" int)"""
    )
    await con.execute("""select webhooks.watch_table('"Sh%p"."The %s"', 'a%I', 'the', array['it''s'])""")
    await con.execute("""insert into "Sh%p"."The %s" values ('s', 1, 2)""")
    assert await events(con) == [("s", "the_created", {"a%I": "s", "100%": 2})]


async def test_a_partitioned_table_is_watched_as_one(con):
    await con.execute(
        "create table parts (id int, shop text) partition by list (id);"
        "create table parts_1 partition of parts for values in (1)"
    )
    await con.execute("select webhooks.watch_table('parts', 'shop', 'part')")
    await con.execute("insert into parts values (1, 's')")
    assert await events(con) == [("s", "part_created", {"id": 1, "shop": "s"})]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("'things', 'nope', 'thing'", "there is no column nope in"),
        ("'things', 'shop', 'thing', '{token,gone}'", "there is no column gone in"),
        ("'things', null, 'thing'", "there is no column null in"),
        ("'things', 'shop', 'not a type'", "type_prefix is identifiers joined by dots"),
        ("'things', 'shop', null", "type_prefix is identifiers joined by dots"),
        ("'nothing', 'shop', 'thing'", 'relation "nothing" does not exist'),
    ],
)
async def test_a_table_is_not_watched_by_mistake(con, arguments, error):
    with pytest.raises(asyncpg.PostgresError, match=error):
        await con.execute(f"select webhooks.watch_table({arguments})")
    assert await use(con) == 1
    assert await events(con) == []


# A trigger that does not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "error"),
    [
        (f"after delete on things for each statement {EMIT}", "AFTER INSERT or AFTER UPDATE"),
        (f"after insert on things for each row {EMIT}", "FOR EACH STATEMENT"),
        (f"before insert on things for each statement {EMIT}", "AFTER INSERT or AFTER UPDATE"),
        (f"before insert or update or delete on things for each row {EMIT}", "FOR EACH STATEMENT"),
        (f"after insert on things for each statement {EMIT}", "does not name its transition tables"),
        (f"after update on things {ROWS} {EMIT}", "does not name its transition tables"),
        (
            f"after insert on things {ROWS} execute function webhooks.emit_changes()",
            "takes the site's column",
        ),
        (
            f"after insert on things {ROWS} execute function webhooks.emit_changes('shop')",
            "takes the site's column",
        ),
        (
            f"after insert on things {ROWS} execute function webhooks.emit_changes('nope', 'a', 'b')",
            "there is no column nope",
        ),
        (
            f"after insert on things {ROWS} execute function webhooks.emit_changes('shop', 'a', 'b', 'gone')",
            "there is no column gone",
        ),
        (
            f"after insert on things {ROWS} execute function webhooks.emit_changes('shop', 'no type', 'b')",
            "'no type' is not an event type",
        ),
    ],
)
async def test_a_trigger_that_does_not_fit_warns_and_breaks_nothing(con, warnings, trigger, error):
    await con.execute(f"create trigger wrong {trigger}")
    assert await use(con) == 1
    assert await events(con) == []
    assert warnings
    for each in warnings:
        assert each.startswith("WARNING: trigger wrong on public.things made no events: ")
        assert error in each


async def test_transition_tables_may_have_any_name(con, warnings):
    await con.execute(
        f"create trigger t after insert on things referencing new table as fresh for each statement {EMIT};"
        'create trigger u after update on things referencing old table as "O d" new table as r'
        f" for each statement {EMIT}"
    )
    await use(con)
    assert [kind for _, kind, _ in await events(con)] == ["thing_created", "thing_created", "thing_updated"]
    assert warnings == []


async def test_a_renamed_column_warns_and_is_never_sent(con, warnings):
    await con.execute("select webhooks.watch_table('things', 'shop', 'thing', '{token}')")
    await con.execute("alter table things rename column token to password")
    assert await use(con) == 1
    assert await events(con) == []
    assert "there is no column token in public.things" in warnings[0]


async def test_a_lost_partition_does_not_break_the_application(con, warnings):
    await con.execute("select webhooks.watch_table('things', 'shop', 'thing')")
    await con.execute("select setval('webhooks.events_event_id_seq', 1)")  # a day that has no partition
    assert await use(con) == 1
    assert "no partition of relation" in warnings[0]


async def test_errors_that_end_any_statement_end_this_one_too(con, database, connect):
    """A lock_timeout is the caller's own wish, and a deadlock the fate of the whole transaction."""
    await con.execute("select webhooks.watch_table('things', 'shop', 'thing')")
    other = await connect(database)
    async with other.transaction():
        await other.execute("lock table webhooks.events in access exclusive mode")
        await con.execute("set lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await con.execute("insert into things values (1, 's', 'a', 'b')")


# emit -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        "'{\"id\": 1}'",
        "'{\"id\": 1}'::json",
        "'{\"id\": 1}'::jsonb",
        "'{\"id\": 1}'::text",
        "json_build_object('id', 1)",
        "jsonb_build_object('id', 1)",
    ],
)
async def test_emit_takes_every_type_that_json_comes_in(con, payload):
    await con.execute(f"select webhooks.emit('s', 't', {payload}, subject => 'orders/1')")
    assert await events(con) == [("s", "t", {"id": 1})]
    assert await con.fetchval("select subject from webhooks.events") == "orders/1"


async def test_emit_takes_parameters_without_a_type(con):
    assert await con.fetchval("select webhooks.emit($1, $2, $3)", "s", "t", '{"id": 1}')
    assert await con.fetchval("select webhooks.emit($1, $2, payload => $3)", "s", "t", '{"id": 1}')
    assert await events(con) == [("s", "t", {"id": 1})] * 2
