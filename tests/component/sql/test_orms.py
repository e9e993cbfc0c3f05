"""INSERT as people write it: psql, Django, SQLAlchemy, psycopg, each as a member of webhooks_producer.

They add RETURNING, savepoints, bulk forms and casts of their own; the contract must hold for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import sqlalchemy as sa
from django.db import connections, models, transaction
from django.db.models import functions
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pghookd.cli.devtools import embedded_postgres
from pghookd.postgres import migrate

PRODUCER = f"pghookd_test_{os.getpid()}_shop"
PASSWORD = "pw-shop"
PAYLOAD = {"id": 7, "total": 59.9, "name": "Ada Ω"}


@pytest.fixture
async def url(admin, database):
    """Return the database's URL for a login role that is a member of webhooks_producer and nothing else."""
    await migrate.migrate(database, roles=True)
    await admin.execute(f"create role {PRODUCER} login password '{PASSWORD}' in role webhooks_producer")
    parts = urlsplit(database)
    yield parts._replace(netloc=f"{PRODUCER}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}").geturl()
    await admin.execute(f"drop role {PRODUCER}")


@pytest.fixture
def events(database):
    """Return `events()`: (event_id, type, payload, subject) of committed events, as their owner sees them."""

    def read():
        with psycopg.connect(database) as connection:
            sql = "select event_id, type, payload::text, subject from webhooks.events order by event_id"
            return connection.execute(sql).fetchall()

    return read


# psql ---------------------------------------------------------------------------------------------------------------


def psql(url, *commands, stdin=None):
    program = shutil.which("psql") or embedded_postgres.EmbeddedServer(Path("unused")).binary("psql")
    words = [word for command in commands for word in ("-c", command)]
    return subprocess.run(
        [program, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url, *words],
        input=stdin, capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip


async def test_psql(url, events):
    insert = (
        "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{\"a\" :1}')"
    )
    psql(url, insert)
    said = psql(url, f"{insert} returning event_id")
    script = f"begin; savepoint a; {insert}; rollback to a; {insert};\ncommit;\n"
    psql(url, stdin=script)
    psql(url, "\\copy webhooks.events (site_id, type, payload) from stdin", stdin="s\torder_created\t{}\n")
    rows = events()
    assert [row[2] for row in rows] == ['{"a" :1}'] * 3 + ["{}"]
    assert int(said) == rows[1][0]


# psycopg ------------------------------------------------------------------------------------------------------------


async def test_psycopg(url, events):
    insert = "insert into webhooks.events (site_id, type, payload, subject) values (%s, %s, %s, %s) returning event_id"
    with psycopg.connect(url) as connection:
        for _ in range(7):  # from the sixth on prepared
            one = connection.execute(
                insert, ("s", "order_created", psycopg.types.json.Json(PAYLOAD), "order/7")
            )
            newest = one.fetchone()[0]
        with connection.cursor() as cursor:
            many = [("s", "order_updated", psycopg.types.json.Jsonb(PAYLOAD), None)] * 20
            cursor.executemany(insert, many, returning=True)
            copying = cursor.copy("copy webhooks.events (site_id, type, payload) from stdin")
            with copying as copy:
                copy.write_row(("s", "product_updated", "{}"))
    rows = events()
    assert len(rows) == 28
    assert rows[6][0] == newest
    assert json.loads(rows[0][2]) == json.loads(rows[10][2]) == PAYLOAD


# Django -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def event_model(configured_django):
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # the test has its thread, and the loop, for itself

    class Event(models.Model):
        event_id = models.BigAutoField(primary_key=True)
        site_id = models.TextField()
        type = models.TextField()
        payload = models.JSONField()
        subject = models.TextField(null=True)  # noqa: DJ001 - the column's null has a meaning

        class Meta:
            app_label = "shop"
            managed = False
            db_table = '"webhooks"."events"'

        def __str__(self):
            return self.type

    return Event


@pytest.fixture(scope="session")
def dated_model(event_model):
    class DatedEvent(models.Model):
        event_id = models.BigAutoField(primary_key=True)
        site_id = models.TextField()
        type = models.TextField()
        payload = models.JSONField()
        created_at = models.GeneratedField(
            expression=functions.Now(), output_field=models.DateTimeField(), db_persist=True
        )

        class Meta:
            app_label = "shop"
            managed = False
            db_table = '"webhooks"."events"'

        def __str__(self):
            return self.type

    return DatedEvent


@pytest.fixture
def dated(dated_model, event):
    """Return a model that reads created_at back, on the test's database."""
    return dated_model


@pytest.fixture
def event(event_model, url):
    """Return the model, on the test's database."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    connection = connections["default"]
    connection.settings_dict.update(
        NAME=parts.path.lstrip("/"),
        USER=parts.username,
        PASSWORD=PASSWORD,
        HOST=query["host"][0] if "host" in query else parts.hostname or "",
        PORT=query["port"][0] if "port" in query else parts.port or "",
    )
    return event_model


async def test_django(event, events):
    made = event.objects.create(site_id="s", type="order_created", payload=PAYLOAD, subject="order/7")
    with transaction.atomic():
        event(site_id="s", type="order_updated", payload=PAYLOAD).save()
        with transaction.atomic():  # a savepoint
            event.objects.create(site_id="s", type="product_created", payload=PAYLOAD)
            transaction.set_rollback(True)
    bulk = event.objects.bulk_create(
        [event(site_id="s", type="contact_updated", payload={"n": n}) for n in range(10)]
    )
    connections["default"].close()  # here: it is the test's own, not the fixture's
    rows = events()
    assert [row[1] for row in rows] == ["order_created", "order_updated"] + ["contact_updated"] * 10
    assert made.pk == rows[0][0]
    assert [each.pk for each in bulk] == [row[0] for row in rows[2:]]
    assert json.loads(rows[0][2]) == PAYLOAD
    assert rows[0][3] == "order/7"


async def test_django_reads_back_what_postgres_filled_in(dated, events):
    """By a GeneratedField: a db_default would put DEFAULT into the INSERT, for which a producer has no right."""
    made = dated.objects.create(site_id="s", type="order_created", payload=PAYLOAD)
    bulk = dated.objects.bulk_create([dated(site_id="s", type="contact_updated", payload={"n": 1})])
    connections["default"].close()
    for each in (made, *bulk):
        assert datetime.now(UTC) - each.created_at < timedelta(minutes=1)
    assert [made.pk, bulk[0].pk] == [row[0] for row in events()]


# SQLAlchemy ---------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Event(Base):
    __tablename__ = "events"
    __table_args__ = {"schema": "webhooks"}  # noqa: RUF012 - as SQLAlchemy wants it

    event_id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    site_id: Mapped[str]
    type: Mapped[str]
    payload: Mapped[dict] = mapped_column(sa.JSON)
    subject: Mapped[str | None]


@pytest.fixture
def engine(url):
    engine = sa.create_engine(sa.engine.make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


async def test_sqlalchemy_orm(engine, events):
    with Session(engine) as session, session.begin():
        one = Event(site_id="s", type="order_created", payload=PAYLOAD, subject="order/7")
        session.add(one)
        session.flush()
        first = one.event_id
        with session.begin_nested() as savepoint:
            session.add(Event(site_id="s", type="product_created", payload=PAYLOAD))
            session.flush()
            savepoint.rollback()
        many = [Event(site_id="s", type="contact_updated", payload={"n": n}) for n in range(10)]
        session.add_all(many)
        session.flush()
        ids = [each.event_id for each in many]
    rows = events()
    assert [row[1] for row in rows] == ["order_created"] + ["contact_updated"] * 10
    assert [first, *ids] == [row[0] for row in rows]
    assert json.loads(rows[0][2]) == PAYLOAD


async def test_sqlalchemy_reads_back_what_postgres_filled_in(engine, events):
    """The table as reflection finds it: created_at and xid have defaults, and come back by RETURNING.

    endpoint_id is not the producer's to set, so that a reflected model leaves it out.
    """
    with pytest.warns(sa.exc.SAWarning, match="xid8"):
        reflected = sa.Table("events", sa.MetaData(), autoload_with=engine, schema="webhooks")

    class Found(DeclarativeBase):
        pass

    class Reflected(Found):
        __table__ = reflected
        __mapper_args__ = {"primary_key": [reflected.c.event_id], "exclude_properties": ["endpoint_id"]}  # noqa: RUF012 - as SQLAlchemy wants it

    with Session(engine) as session, session.begin():
        one = Reflected(site_id="s", type="order_created", payload=PAYLOAD)
        session.add(one)
        session.flush()
        assert datetime.now(UTC) - one.created_at < timedelta(minutes=1)
        many = [Reflected(site_id="s", type="contact_updated", payload={"n": n}) for n in range(10)]
        session.add_all(many)
        session.flush()
        assert {each.created_at for each in many} == {one.created_at}
        ids = [one.event_id, *(each.event_id for each in many)]
    assert ids == [row[0] for row in events()]


async def test_sqlalchemy_core(engine, events):
    values = {"site_id": "s", "type": "order_created", "payload": PAYLOAD}
    with engine.begin() as connection:
        first = connection.execute(sa.insert(Event.__table__).values(values)).inserted_primary_key[0]
        ids = connection.scalars(
            sa.insert(Event.__table__).returning(Event.event_id, sort_by_parameter_order=True), [values] * 5
        ).all()
        jsonb = sa.table(
            "events", sa.column("site_id"), sa.column("type"), sa.column("payload", postgresql.JSONB)
        )
        jsonb.schema = "webhooks"
        connection.execute(sa.insert(jsonb).values(values))
    rows = events()
    assert [first, *ids] == [row[0] for row in rows[:-1]]
    assert json.loads(rows[-1][2]) == PAYLOAD
