"""An endpoint proves itself: once it is added or changed its row says whether requests could be made, and why not."""

from __future__ import annotations

import pytest
import structlog

from pghookd.encryption.ciphertext import plain_only
from pghookd.postgres import client
from pghookd.runtime.upkeep import readiness
from pghookd.runtime.upkeep.readiness import Readiness
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults
from support.crew import living

ADD = "insert into webhooks.endpoints (site_id, url{}) values ('s', $1{}) returning endpoint_id"
ROW = "select ready, why from webhooks.endpoints where endpoint_id = $1"


class Unreachable:
    """Stands for the sender: knows an obstacle for some URLs."""

    def __init__(self):
        self.obstacles = {"https://inner.example/": "it resolves to an address that is not public"}
        self.asked = []

    async def __call__(self, url):
        self.asked.append(url)
        return self.obstacles.get(url)


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="care")
    await session.execute("insert into webhooks.sites (site_id, name, endpoints_max) values ('s', 'S', null)")
    yield session
    await session.close()


@pytest.fixture
def obstacle():
    return Unreachable()


@pytest.fixture
def judge(session, obstacle):
    return Readiness(
        session,
        1,
        defaults=Defaults.of(Settings(), plain_only),
        obstacle=obstacle,
        logger=structlog.get_logger(),
    )


async def row(session, endpoint_id):
    return tuple(await session.fetchrow(ROW, endpoint_id))


async def add(session, url="https://a.example/", **columns):
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", ${n + 2}" for n in range(len(columns)))
    return await session.fetchval(ADD.format(names, values), url, *columns.values())


async def test_a_usable_endpoint_is_ready(session, judge):
    endpoint_id = await add(session)
    assert await row(session, endpoint_id) == (None, None)
    assert await judge.step() == 1
    assert await row(session, endpoint_id) == (True, None)
    assert await judge.step() == 0


async def test_a_judgement_rings_no_bell(session, judge, database, connect):
    heard = []
    listener = await connect(database)
    await listener.add_listener("pghookd", lambda *said: heard.append(said[-1]))
    endpoint_id = await add(session)
    await judge.step()
    # The setting ended with the judgement.
    await session.execute("update webhooks.endpoints set description = 'd'")
    await listener.execute("select")  # notifications sent before come first
    assert heard == [f"endpoints:{endpoint_id}"] * 2


@pytest.mark.parametrize(
    ("url", "columns", "why"),
    [
        ("https://inner.example/", {}, "url: it resolves to an address that is not public"),
        ("https://a.example/", {"secret": "enc:v1:nobody:AAAA"}, "its secret cannot be decrypted"),
        ("https://a.example/", {"auth": '{"bearer": {"token": "a b"}}'}, "auth"),
    ],
)  # fmt: skip
async def test_an_endpoint_that_cannot_be_used_says_why(session, judge, url, columns, why):
    await session.execute(
        'alter table webhooks.endpoints drop constraint "auth.bearer is a token of RFC 6750"'
    )
    endpoint_id = await add(session, url, **columns)
    await judge.step()
    ready, found = await row(session, endpoint_id)
    assert not ready
    assert found.startswith(why)


async def test_a_change_is_judged_again_and_other_changes_are_not(session, judge, obstacle):
    endpoint_id = await add(session)
    await judge.step()
    await session.execute("update webhooks.endpoints set description = 'x', enabled = false")
    assert await judge.step() == 0
    await session.execute("update webhooks.endpoints set url = 'https://inner.example/'")
    assert await row(session, endpoint_id) == (None, None)
    await judge.step()
    assert await row(session, endpoint_id) == (False, "url: it resolves to an address that is not public")
    obstacle.obstacles.clear()
    await session.execute("update webhooks.endpoints set filter = '$.a == 1'")
    await judge.step()
    assert await row(session, endpoint_id) == (True, None)


async def test_a_row_that_changes_meanwhile_is_judged_again(session, judge, obstacle, database, connect):
    endpoint_id = await add(session)
    other = await connect(database)
    asked = obstacle.__call__

    async def change(url):
        await other.execute("update webhooks.endpoints set url = 'https://inner.example/'")
        return await asked(url)

    judge.apply(judge._defaults, change)
    await judge.step()
    assert await row(session, endpoint_id) == (None, None)
    judge.apply(judge._defaults, obstacle)
    await judge.step()
    assert await row(session, endpoint_id) == (False, "url: it resolves to an address that is not public")


async def test_many_are_judged_in_pages(session, judge):
    for _ in range(readiness.PAGE + 1):
        await add(session)
    assert [await judge.step() for _ in range(3)] == [readiness.PAGE, 1, 0]


async def test_a_daemon_judges_within_a_second(session, database, until):
    async with living(database):
        allowed = await add(session, "http://127.0.0.1:9/")
        await until(
            lambda: session.fetchval("select ready from webhooks.endpoints where endpoint_id = $1", allowed)
        )
        refused = await add(session, "http://10.0.0.1/")
        why = "select why from webhooks.endpoints where endpoint_id = $1"
        await until(lambda: session.fetchval(why, refused))
        assert "10.0.0.1 is a private address" in await session.fetchval(why, refused)
