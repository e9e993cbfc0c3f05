"""The attempts of one delivery, each with the URL that its endpoint had at the time."""

from __future__ import annotations

import json
import os

import pytest

from pghookd.postgres import migrate
from support.events import emit

FIRST, SECOND = "https://a.example/hook?token=t", "https://user:pw@b.example:8443/x"


class Delivery:
    """A delivery of site s, whose attempts are made by hand."""

    def __init__(self, con, event_id, endpoint_id):
        self.con, self.event_id, self.endpoint_id = con, event_id, endpoint_id

    async def attempt(self, number):
        """Record an attempt with the present revision."""
        await self.con.execute(
            "insert into webhooks.attempts (event_id, endpoint_id, site_id, attempted_at, duration_ms, attempt, status,"
            " outcome, error, cause, revision) select $1, endpoint_id, 's', now(), 12.5, $3, 503, 'refused', 'busy',"
            " 'retry', revision from webhooks.endpoints where endpoint_id = $2",
            self.event_id,
            self.endpoint_id,
            number,
        )

    async def explain(self, **evidence):
        """Give all attempts this evidence."""
        await self.con.execute("update webhooks.attempts set evidence = $1", json.dumps(evidence))

    async def evidence(self, con):
        [row] = await self.detail(con)
        return json.loads(row["evidence"])

    async def change(self, assigned):
        await self.con.execute(
            f"update webhooks.endpoints set {assigned} where endpoint_id = $1", self.endpoint_id
        )

    async def detail(self, con=None):
        return await (con or self.con).fetch(
            "select * from webhooks.delivery_detail($1, $2)", self.event_id, self.endpoint_id
        )

    async def urls(self, con=None):
        return [row["url"] for row in await self.detail(con)]


@pytest.fixture
async def delivery(database, connect):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    endpoint_id = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1) returning endpoint_id", FIRST
    )
    made = Delivery(con, await emit(con), endpoint_id)
    await made.attempt(1)
    return made


@pytest.fixture
async def login(admin, database, connect):
    """Return `await login(role, site)`: a session of a new login that is a member of a role, and sees a site."""
    await migrate.migrate(database, roles=True)
    made = []

    async def make(role, site=None):
        name = f"pghookd_test_{os.getpid()}_detail_{len(made)}"
        made.append(name)
        await admin.execute(f"create role {name}")
        await admin.execute(f"grant {role} to {name}")
        con = await connect(database)
        await con.execute(f"set session authorization {name}")
        if site is not None:
            await con.execute("select set_config('webhooks.site_id', $1, false)", site)
        return con

    yield make
    for name in made:
        await admin.execute(f"drop role {name}")


async def test_an_attempt_has_its_answer_its_cause_and_its_revision(delivery):
    [row] = await delivery.detail()
    told = {**row}
    assert told.pop("attempted_at") is not None
    assert told == {
        "attempt": 1,
        "duration_ms": 12.5,
        "outcome": "refused",
        "status": 503,
        "error": "busy",
        "cause": "retry",
        "revision": 1,
        "url": FIRST,
        "evidence": None,
        "response": None,
    }


async def test_an_answer_is_shown_where_it_is_asked_for(delivery, login):
    await delivery.con.execute("update webhooks.attempts set response = 'busy'")
    shown = {
        "webhooks_site": b"busy",
        "webhooks_support": b"busy",
        "webhooks_admin": b"busy",
        "webhooks_reader": None,
    }
    for role, answer in shown.items():
        con = await login(role, "s")
        [row] = await con.fetch(
            "select * from webhooks.delivery_detail($1, $2, answers => true)",
            delivery.event_id,
            delivery.endpoint_id,
        )
        assert row["response"] == answer
        assert [row["response"] for row in await delivery.detail(con)] == [None]
    other = await login("webhooks_site", "t")
    assert await other.fetch("select from webhooks.delivery_detail($1, $2, true)", delivery.event_id, 1) == []


async def change_twice(delivery):
    """Change the URL and other columns between attempts, the last of which comes after the last change."""
    await delivery.change("timeout_s = 5")
    await delivery.attempt(2)
    await delivery.change(f"url = '{SECOND}'")
    await delivery.attempt(3)
    await delivery.change("timeout_s = 6")
    await delivery.attempt(4)


async def test_the_url_is_that_of_the_time(delivery):
    await change_twice(delivery)
    assert await delivery.urls() == [FIRST, FIRST, SECOND, SECOND]
    assert [row["revision"] for row in await delivery.detail()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("upto", "known"),
    [
        (1, [FIRST, FIRST, SECOND, SECOND]),
        (2, [None, FIRST, SECOND, SECOND]),
        (3, [None, None, SECOND, SECOND]),
    ],
)
async def test_a_url_is_known_as_long_as_the_next_revision_is(delivery, upto, known):
    await change_twice(delivery)
    await delivery.con.execute("delete from webhooks.endpoint_revisions where revision <= $1", upto)
    assert await delivery.urls() == known


async def test_a_url_outlives_its_endpoint(delivery):
    await delivery.con.execute("delete from webhooks.endpoints")
    assert await delivery.urls() == [FIRST]


async def test_an_attempt_without_a_revision_has_no_url(delivery):
    await delivery.con.execute("update webhooks.attempts set revision = null")
    assert await delivery.urls() == [None]


async def test_scheme_and_host_unless_the_caller_may_read_urls(delivery, login):
    await change_twice(delivery)
    shown = ["https://a.example", "https://a.example", "https://b.example:8443", "https://b.example:8443"]
    assert await delivery.urls(await login("webhooks_reader")) == shown
    path = [
        "https://a.example/hook",
        "https://a.example/hook",
        "https://b.example:8443/x",
        "https://b.example:8443/x",
    ]
    assert await delivery.urls(await login("webhooks_site", "s")) == path
    for role in ("webhooks_admin", "webhooks_daemon"):
        assert await delivery.urls(await login(role)) == [FIRST, FIRST, SECOND, SECOND]


async def test_a_site_sees_its_own_deliveries_and_no_other(delivery, login):
    for site in ("t", "", None):
        assert await delivery.detail(await login("webhooks_site", site)) == []
    assert len(await delivery.detail(await login("webhooks_site", "s"))) == 1


async def test_a_site_sees_no_url_that_the_endpoint_got_elsewhere(delivery, login):
    await delivery.change("site_id = 't'")
    await delivery.change(f"url = '{SECOND}'")
    await delivery.attempt(2)
    assert await delivery.urls(await login("webhooks_site", "s")) == ["https://a.example/hook", None]
    assert await delivery.urls(await login("webhooks_reader")) == [
        "https://a.example",
        "https://b.example:8443",
    ]


WAY = {"reached": "body", "ms": {"dns": 3}}
HEADERS = {"headers": {"server": "nginx"}, "headers_left_out": 2}


@pytest.mark.parametrize("role", ["webhooks_support", "webhooks_admin", "webhooks_daemon"])
async def test_who_reads_answers_sees_all_evidence(delivery, login, role):
    whole = {"address": "10.0.0.8:3128", "via": "proxy", **WAY, **HEADERS}
    await delivery.explain(**whole)
    assert await delivery.evidence(await login(role)) == whole


async def test_a_reader_sees_no_header_of_an_answer(delivery, login):
    await delivery.explain(address="203.0.113.9:443", **WAY, **HEADERS)
    for site in (None, "s"):
        reader = await login("webhooks_reader", site)
        assert await delivery.evidence(reader) == {"address": "203.0.113.9:443", **WAY}


async def test_a_site_sees_the_headers_of_its_receiver_but_no_proxy(delivery, login):
    whole = {"address": "203.0.113.9:443", **WAY, **HEADERS}
    await delivery.explain(**whole)
    site = await login("webhooks_site", "s")
    assert await delivery.evidence(site) == whole
    await delivery.explain(address="10.0.0.8:3128", via="proxy", **WAY, **HEADERS)
    assert await delivery.evidence(site) == {"via": "proxy", **WAY, **HEADERS}
