"""Hostile producers: everything that a transaction may do around an INSERT into events, at random, seeded.

Each keeps account of what it committed and when. Nothing here reads the daemon's state.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time

import asyncpg

from support import events

INSERT = "insert into webhooks.events (site_id, type, payload) values ($1, 'order_created', $2)"
SITES = tuple(f"site-{n}" for n in range(12))


def payload(mark):
    return json.dumps({"m": mark})


def mark_of(body):
    """Return the mark in a payload, as bytes or text."""
    return json.loads(body)["m"]


async def make_sites(connection, url="http://127.0.0.1:9/", sites=SITES):
    """Make sites with one endpoint each."""
    await connection.executemany(
        "insert into webhooks.sites (site_id, name) values ($1, $1) on conflict do nothing",
        [(s,) for s in sites],
    )
    await connection.executemany(
        "insert into webhooks.endpoints (site_id, url) values ($1, $2)", [(s, url) for s in sites]
    )


async def emit(connection, count=1, site=SITES[0], mark="m"):
    """Insert marked events in one transaction; return the event ids."""
    marked = events.Sql(f"json_build_object('m', '{mark}-' || n)")
    return await events.emit(connection, count, site=site, payload=marked)


@dataclasses.dataclass
class Account:
    """The committed events: mark to the moment (monotonic seconds) at which the commit was known."""

    committed: dict[str, float] = dataclasses.field(default_factory=dict)
    killed: int = 0
    prepared: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)


class Producer:
    """One connection that misbehaves.

    Args:
        name: the beginning of its marks.
        url: of the database.
        seed: of its choices.
        account: where it writes down what it committed.
        patience_s: the longest it leaves a transaction open.
        two_phase: whether the server takes prepared transactions.
        silent: whether those set webhooks.bell to off, as they should; the others fail while somebody sleeps.
    """

    def __init__(self, name, url, seed, account, *, patience_s=0.3, two_phase=True, silent=True):
        self.name = name
        self._url = url
        self._rnd = random.Random(f"{seed}-{name}")
        self._account = account
        self._patience_s = patience_s
        self._silent = silent
        self._kinds = [
            self.single,
            self.single,
            self.several_statements,
            self.xid_long_before_the_id,
            self.savepoint_rolled_back,
            self.savepoint_kept,
            self.no_row_at_all,
            self.exception_in_plpgsql,
            self.copy,
            self.insert_select,
            self.rolled_back,
            self.killed,
            *([self.two_phase, self.two_phase_rolled_back] if two_phase else []),
        ]
        self._connection = None
        self._count = 0

    async def once(self):
        """Run one transaction of some kind; whatever it committed is in the account afterwards."""
        if self._connection is None:
            self._connection = await asyncpg.connect(self._url)
        self._count += 1
        mark = f"{self.name}.{self._count}"
        kind = self._rnd.choice(self._kinds)
        try:
            marks = await kind(mark)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            self._account.refused.append(f"{kind.__name__}: {error!r}")
            self.close()
            return
        now = time.monotonic()
        self._account.committed.update(dict.fromkeys(marks, now))

    async def run(self, stop):
        """Run one after another until the event is set."""
        while not stop.is_set():
            await self.once()
        self.close()

    def close(self):
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _linger(self, power=4):
        """Leave the transaction open, mostly for a moment, at times for long."""
        await asyncio.sleep(self._rnd.random() ** power * self._patience_s)

    async def _insert(self, mark):
        await self._connection.execute(INSERT, self._rnd.choice(SITES), payload(mark))
        return mark

    # The kinds: each returns what it committed --------------------------------------------------------------

    async def single(self, mark):
        return [await self._insert(mark)]

    async def several_statements(self, mark):
        isolation = self._rnd.choice(("read_committed", "repeatable_read"))
        async with self._connection.transaction(isolation=isolation):
            first = await self._insert(f"{mark}a")
            await self._linger()
            second = await self._insert(f"{mark}b")
            await self._linger()
        return [first, second]

    async def xid_long_before_the_id(self, mark):
        async with self._connection.transaction():
            await self._connection.execute("select pg_current_xact_id()")
            await self._linger()
            return [await self._insert(mark)]

    async def savepoint_rolled_back(self, mark):
        """The trigger's lock and NOTIFY are rolled back with the savepoint; rows before and after live."""
        alive = []
        async with self._connection.transaction():
            if self._rnd.random() < 0.5:
                alive.append(await self._insert(f"{mark}a"))
            inner = self._connection.transaction()
            await inner.start()
            await self._insert(f"{mark}gone")
            await self._linger()
            await inner.rollback()
            await self._linger()
            if self._rnd.random() < 0.7:
                alive.append(await self._insert(f"{mark}b"))
        return alive

    async def savepoint_kept(self, mark):
        async with self._connection.transaction():
            async with self._connection.transaction():
                await self._insert(mark)
            await self._linger()
        return [mark]

    async def no_row_at_all(self, _mark):
        await self._connection.execute(
            "insert into webhooks.events (site_id, type, payload) select 's', 't', '{}' where false"
        )
        return []

    async def exception_in_plpgsql(self, mark):
        site = self._rnd.choice(SITES)
        await self._connection.execute(f"""do $$ begin
          begin
            insert into webhooks.events (site_id, type, payload)
              values ('{site}', 'order_created', '{payload(mark + "gone")}');
            perform 1 / 0;
          exception when division_by_zero then null; end;
          insert into webhooks.events (site_id, type, payload)
            values ('{site}', 'order_created', '{payload(mark)}');
        end $$""")
        return [mark]

    async def copy(self, mark):
        marks = [f"{mark}{letter}" for letter in "abc"]
        site = self._rnd.choice(SITES)
        await self._connection.copy_records_to_table(
            "events",
            schema_name="webhooks",
            columns=["site_id", "type", "payload"],
            records=[(site, "order_created", payload(each)) for each in marks],
        )
        return marks

    async def insert_select(self, mark):
        marks = [f"{mark}-{n}" for n in (1, 2, 3)]
        await emit(self._connection, 3, self._rnd.choice(SITES), mark)
        return marks

    async def rolled_back(self, mark):
        transaction = self._connection.transaction()
        await transaction.start()
        await self._insert(f"{mark}gone")
        await self._linger()
        await transaction.rollback()
        return []

    async def killed(self, mark):
        await self._connection.execute("begin")
        await self._insert(f"{mark}gone")
        await self._linger()
        other = await asyncpg.connect(self._url)
        await other.execute("select pg_terminate_backend($1)", self._connection.get_server_pid())
        await other.close()
        self.close()
        self._account.killed += 1
        return []

    async def two_phase(self, mark):
        """Ended later, as any session may."""
        if not await self._prepare(mark):
            return []
        await self._linger(2)
        await self._connection.execute(f"commit prepared '{mark}'")
        self._account.prepared += 1
        return [mark]

    async def two_phase_rolled_back(self, mark):
        if await self._prepare(mark):
            await self._linger()
            await self._connection.execute(f"rollback prepared '{mark}'")
        return []

    async def _prepare(self, mark):
        """Prepare; False where the transaction has rung and so cannot be."""
        await self._connection.execute("begin")
        if self._silent:
            await self._connection.execute("set local webhooks.bell = off")
        await self._insert(mark)
        try:
            await self._connection.execute(f"prepare transaction '{mark}'")
        except asyncpg.FeatureNotSupportedError:
            await self._connection.execute("rollback")
            return False
        return True


async def takes_two_phase(connection):
    """Return True if the server takes prepared transactions."""
    return int(await connection.fetchval("show max_prepared_transactions")) > 0


class Crowd:
    """Several producers, and bursts of their transactions."""

    def __init__(self, url, seed, count, **options):
        self.account = Account()
        self._rnd = random.Random(seed)
        self._producers = [
            Producer(f"p{seed}.{number}", url, seed, self.account, **options) for number in range(count)
        ]

    async def burst(self):
        """Run one to four transactions at once, at slightly different moments, and wait for their ends."""
        chosen = self._rnd.sample(self._producers, self._rnd.choice((1, 1, 2, min(4, len(self._producers)))))
        await asyncio.gather(*(self._once(each) for each in chosen))

    async def _once(self, producer):
        await asyncio.sleep(self._rnd.choice((0, 0.001, 0.003, self._rnd.random() * 0.03)))
        await producer.once()

    async def run(self, seconds):
        """Run all of them for so long."""
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        await asyncio.gather(*(producer.run(stop) for producer in self._producers))

    def close(self):
        for producer in self._producers:
            producer.close()
