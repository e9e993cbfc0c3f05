"""Attacks of one hostile tenant against the others: a table, for test_tenant.py.

The tenant has what the owner of a site has, and what a producer writes for that site: endpoints with every option,
events of any kind and number, and receivers that behave as badly as they can. It has no right in the database.

Each attack is a generator: the part before its `yield` prepares it in peace, the part after it runs while the
other site is watched. `cold`: the daemon starts only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable

import asyncpg

from support.hostile_receiver import ADDRESSES

ATTACKS: dict[str, Attack] = {}


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack, and whether it is prepared before the daemon starts."""

    run: Callable[[Tenant], AsyncIterator[None]]
    cold: bool = False


def attack(function=None, *, cold=False):
    if function is None:
        return lambda it: attack(it, cold=cold)
    ATTACKS[function.__name__] = Attack(function, cold)
    return function


class Tenant:
    """The hostile site."""

    def __init__(self, session: asyncpg.Connection, port: int, silent_port: int, neighbour: str) -> None:
        self.session = session
        self.base = f"http://127.0.0.1:{port}"
        self.silent = f"https://127.0.0.1:{silent_port}"
        self.neighbour = neighbour  # the host that the other site's endpoint is on

    async def endpoints(
        self, path: str, count: int = 1, *, base: str | None = None, **options: object
    ) -> None:
        """Register endpoints `path/1`, `path/2`, ..."""
        names = ", ".join(("site_id", "url", *options))
        places = "".join(f", ${n}" for n in range(3, 3 + len(options)))
        await self.session.execute(
            f"insert into webhooks.endpoints ({names})"
            f" select 'evil', $1 || '/' || n{places} from generate_series(1, $2::int) n",
            (base or self.base) + path,
            count,
            *options.values(),
        )

    async def events(self, count: int, **columns: str) -> None:
        """Write events in one statement; values are SQL, with `n` for their number."""
        given = {"type": "'order_created'", "payload": """'{"a": 1}'::json""", **columns}
        await self.session.execute(
            f"insert into webhooks.events (site_id, {', '.join(given)})"
            f" select 'evil', {', '.join(given.values())} from generate_series(1, {count}) n"
        )

    async def again(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something over and over until the attack is ended."""
        while True:
            await act()
            await asyncio.sleep(seconds)


# Slots ----------------------------------------------------------------------------------------------------------------


@attack
async def slow_successes(tenant):
    await tenant.endpoints("/slow/28", 300, timeout_s=30.0, concurrency=1000)
    yield
    await tenant.events(20)


@attack
async def wide_endpoints_that_become_slow(tenant):
    await tenant.endpoints("/fast-then/28", 2, timeout_s=30.0, concurrency=1000)
    await tenant.events(3000)
    await asyncio.sleep(3)
    await tenant.endpoints("/turn", 1)
    await tenant.events(1)
    await asyncio.sleep(0.5)
    yield
    await tenant.events(3000)


@attack
async def hangs(tenant):
    await tenant.endpoints("/hang", 300)
    yield
    await tenant.events(20)


@attack
async def drips(tenant):
    await tenant.endpoints("/drip", 300)
    yield
    await tenant.events(10)


@attack
async def tls_stalls(tenant):
    await tenant.endpoints("/x", 300, base=tenant.silent)
    yield
    await tenant.events(10)


@attack
async def dead_names(tenant):
    for n in range(1000):
        await tenant.endpoints("/x", 1, base=f"https://no-such-host-{n}.invalid")
    yield
    await tenant.events(5)


@attack
async def token_endpoints_that_hang(tenant):
    auth = {"oauth2": {"token_url": tenant.silent + "/token", "client_id": "me", "client_secret": "s"}}
    await tenant.endpoints("/ok", 300, auth=json.dumps(auth))
    yield
    await tenant.events(20)


@attack
async def connections_to_many_hosts(tenant):
    port = tenant.base.rpartition(":")[2]
    for address in ADDRESSES:
        await tenant.endpoints("/ok", 1, base=f"http://{address}:{port}")
    yield
    await tenant.again(0.5, lambda: tenant.events(5))


@attack
async def slow_successes_on_the_neighbours_host(tenant):
    await tenant.endpoints("/slow", 200, base=tenant.neighbour, timeout_s=30.0, concurrency=1000)
    yield
    await tenant.events(20)


@attack
async def endless_answers(tenant):
    for path in ("/flood", "/huge", "/chunks"):
        await tenant.endpoints(path, 30)
    yield
    await tenant.events(20)


@attack
async def closed_connections(tenant):
    await tenant.endpoints("/close", 100)
    yield
    await tenant.events(50)


@attack
async def redirects(tenant):
    await tenant.endpoints("/status/302", 100)
    yield
    await tenant.events(50)


@attack
async def endpoints_beyond_the_limit(tenant):
    await tenant.endpoints("/ok", 100)
    await tenant.session.execute("update webhooks.sites set endpoints_max = 100 where site_id = 'evil'")
    yield

    async def add_more():
        with contextlib.suppress(asyncpg.ProgramLimitExceededError):
            await tenant.endpoints("/ok", 1000)
            raise AssertionError("the limit does not stand")
        await tenant.events(10)

    await tenant.again(0.01, add_more)


# The log and memory ---------------------------------------------------------------------------------------------------


@attack
async def a_flood(tenant):
    await tenant.endpoints("/ok", 3)
    await tenant.events(1)
    yield
    await tenant.events(60_000)


@attack(cold=True)
async def a_flood_before_the_start(tenant):
    await tenant.endpoints("/ok", 3)
    await tenant.events(60_000)
    yield


@attack(cold=True)
async def a_flood_of_slow_ones_before_the_start(tenant):
    await tenant.endpoints("/slow/10", 20)
    await tenant.events(20_000)
    yield


@attack
async def ten_thousand_endpoints(tenant):
    await tenant.endpoints("/ok", 10_000)
    yield
    await tenant.events(3)


@attack(cold=True)
async def many_endpoints_and_events(tenant):
    await tenant.endpoints("/slow/5", 3000)
    await tenant.events(1000)
    yield


@attack
async def ordered_keys(tenant):
    await tenant.endpoints("/slow/20", 1, ordered=True)
    yield
    await tenant.events(200_000, ordering_key="'key' || n")


@attack
async def large_payloads(tenant):
    await tenant.endpoints("/slow/10", 60, timeout_s=20.0)
    yield
    for _ in range(20):
        await tenant.events(10, payload="to_json(repeat('x', 1000000))")


@attack
async def large_payloads_that_hang(tenant):
    await tenant.endpoints("/hang", 200)
    yield
    await tenant.events(20, payload="to_json(repeat('x', 20000))")


@attack
async def types_that_nobody_takes(tenant):
    await tenant.endpoints("/ok", 500, event_types=["form_submitted"])
    yield
    for _ in range(10):
        await tenant.events(1000, type="'type_' || n")


# Keys and schedules ---------------------------------------------------------------------------------------------------


@attack
async def one_dedupe_key(tenant):
    await tenant.endpoints("/ok", 1)
    yield
    await tenant.events(20_000, dedupe_key="'same'")


@attack(cold=True)
async def one_dedupe_key_before_the_start(tenant):
    await tenant.endpoints("/ok", 1)
    await tenant.events(20_000, dedupe_key="'same'")
    yield


@attack
async def one_supersede_key(tenant):
    await tenant.endpoints("/status/500", 1)
    yield
    for _ in range(10):
        await tenant.events(3000, supersede_key="'same'")


@attack
async def everything_due_at_once(tenant):
    await tenant.endpoints("/ok", 2)
    yield
    await tenant.events(20_000, deliver_after="clock_timestamp() + interval '2 s'")


@attack
async def expired_events(tenant):
    await tenant.endpoints("/hang", 5)
    yield
    await tenant.events(10_000, deliver_before="clock_timestamp() + interval '1 s'")


# Answers and options --------------------------------------------------------------------------------------------------


@attack
async def retries(tenant):
    await tenant.endpoints("/status/500", 20, retry_schedule=",".join(["1s"] * 20))
    yield
    await tenant.events(2000)


@attack
async def retry_after(tenant):
    await tenant.endpoints("/again/1", 50)
    await tenant.endpoints("/again/86400", 50)
    yield
    await tenant.events(200)


@attack
async def gone_and_enabled_again(tenant):
    await tenant.endpoints("/status/410", 50)
    yield
    await tenant.events(200)
    await tenant.again(
        0.2,
        lambda: tenant.session.execute(
            "update webhooks.endpoints set enabled = true where site_id = 'evil' and not enabled"
        ),
    )


@attack
async def endpoints_that_change_all_the_time(tenant):
    await tenant.endpoints("/ok", 500)
    yield
    await tenant.again(
        0.05,
        lambda: tenant.session.execute(
            "update webhooks.endpoints set description = 'x' where site_id = 'evil'"
        ),
    )


@attack
async def filters(tenant):
    product = "$.a[*] ? (@ == 1 && exists ($.a[*] ? (@ > 0)) && exists ($.a[*] ? (@ < 0)))"
    await tenant.endpoints("/ok", 20, filter=product)
    yield
    numbers = "json_build_object('a', (select json_agg(i) from generate_series(1, 2000) i))"
    await tenant.events(500, payload=numbers)


@attack
async def filters_by_regular_expressions(tenant):
    await tenant.endpoints("/ok", 100, filter='$ ? (@.a like_regex "^(a*)*(a*)*(a*)*b$")')
    yield
    await tenant.events(500, payload="json_build_object('a', repeat('a', 2000))")


@attack
async def tests_without_end(tenant):
    await tenant.endpoints("/ok", 20)
    yield
    await tenant.again(
        0.01,
        lambda: tenant.session.execute(
            "select webhooks.send_test(endpoint_id) from webhooks.endpoints, generate_series(1, 10)"
            " where site_id = 'evil'"
        ),
    )


@attack
async def replays_without_end(tenant):
    await tenant.endpoints("/ok", 10)
    await tenant.events(2000)
    yield
    await tenant.again(
        0.1,
        lambda: tenant.session.execute(
            "select webhooks.replay(site_id => 'evil', states => '{dead,delivered,missed}',"
            " rate_per_s => 1000, dry_run => false)"
        ),
    )


@attack
async def failures_on_many_hosts(tenant):
    for n in range(2, 60):
        await tenant.endpoints("/x", 1, base=f"http://127.0.0.{n}:1025")
    yield
    await tenant.events(50)


@attack
async def many_owners(tenant):
    await tenant.endpoints("/status/500", 20)
    yield
    await tenant.events(100)
    for n in range(10_000):
        await tenant.session.execute(
            "update webhooks.sites set owner_email = $1 where site_id = 'evil'", f"victim+{n}@bank.example"
        )


@contextlib.asynccontextmanager
async def under_attack(attack_: Attack, tenant: Tenant):
    """Prepare an attack; yields a coroutine function that strikes; the caller cancels it when it has seen enough."""
    steps = attack_.run(tenant)
    await anext(steps)

    async def strike():
        with contextlib.suppress(StopAsyncIteration):
            await anext(steps)

    yield strike
    await steps.aclose()
