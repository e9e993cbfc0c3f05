"""The life between two recoveries: own the shards, recover, run the loops; it ends with a value.

All sessions are opened before the first snapshot, then each reports its server's identity once more. Only the bell's is
ever reopened. Any failure of a session ends the epoch: memory is dropped, and the next epoch recovers from the
database. Dropping memory is required for correctness: a snapshot kept across a reconnect loses events.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Sequence
from typing import Final, TypeAlias, TypeVar

from pghookd.delivery import poison
from pghookd.event_log import former_server, identity
from pghookd.event_log.identity import ForeignDatabase, Here, RivalDatabase, ServerIdentity
from pghookd.event_log.position import Snapshot
from pghookd.event_log.recovery import log_of
from pghookd.event_log.rows import shard_of, stay_of
from pghookd.event_log.supersede import Keys
from pghookd.model.suspect import Stay
from pghookd.postgres.client import DatabaseAway, DatabaseError, Session, Unfit, query
from pghookd.process.logs import LogEvent
from pghookd.runtime.assembly import Start
from pghookd.runtime.loops import LOOPS, Loops, World
from pghookd.runtime.notifications import NotificationRouter
from pghookd.runtime.ownership import StandBy, own
from pghookd.runtime.sessions import Sessions, check_echo, identify

ASSEMBLE_WITHIN_S: Final = 30.0
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A session was lost or refused; recover in a new epoch."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """The daemon was stopped, and every outcome that could be recorded was."""


@dataclasses.dataclass(frozen=True, slots=True)
class Foreign:
    """This is not the database of the earlier runs: deliver nothing, wait for adopt.

    Attributes:
        reason: why it is foreign.
        rival: True if the database may still run elsewhere, so that it is not adopted automatically.
    """

    reason: str
    rival: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """Settings or an environment with which the daemon must not run."""

    reason: str


Ending: TypeAlias = Lost | Stopped | Foreign | Misfit


async def run(world: World) -> Ending:
    """Run one epoch."""
    sessions = Sessions(world.settings.database)
    try:
        return await _live(world, sessions)
    except BaseExceptionGroup as group:
        ending = _ending_of(group)
        if ending is None:
            raise
        return ending
    except _StoppedEarly:
        return Stopped()
    except (DatabaseAway, DatabaseError) as error:
        return Lost(str(error))
    except ForeignDatabase as error:
        return Foreign(str(error), isinstance(error, RivalDatabase))
    except Unfit as error:
        return Misfit(str(error))
    finally:
        sessions.terminate()


def _ending_of(group: BaseExceptionGroup[BaseException]) -> Ending | None:
    """Return the ending for a group of database errors only; None if it contains any other error."""
    _, others = group.split((DatabaseAway, DatabaseError, ForeignDatabase, Unfit))
    if others is not None:
        return None
    for kind, ending in ((Unfit, Misfit), (ForeignDatabase, Foreign), (Exception, Lost)):
        found, _ = group.split(kind)
        if found is not None:
            return ending(str(_first_of(found)))
    return None


def _first_of(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


# The epoch ------------------------------------------------------------------------------------------------------------


async def _live(world: World, sessions: Sessions) -> Ending:
    record = await _unless_stopped(sessions.record(), world.stop, sessions)
    shards = await _shards(world, record)
    await sessions.warm("record")
    here = await _here(world, record)
    standing_by = StandBy(
        record,
        shards,
        here,
        ready=lambda status: _stand_by(world, status),
        logger=world.context.logger,
        monotonic=world.context.monotonic,
    )
    await _unless_stopped(own(record, shards, standing_by=standing_by.step), world.stop, sessions)
    world.context.logger.info(LogEvent.SHARD_TAKEN, shards=shards)
    loops = await _unless_stopped(_in_time(_assemble(world, sessions, record, here)), world.stop, sessions)
    world.ready(f"reading the log, {shards} shards")
    async with asyncio.TaskGroup() as group:
        await loops.run(group)
    return Stopped()


async def _shards(world: World, record: Session) -> int:
    """Make the rows of `shards` at the first run; the setting must match their number ever after."""
    wanted = world.settings.delivery.shards
    await record.execute(query("make_shards"), wanted)
    there: int = await record.fetchval(query("count_shards"))
    if there != wanted:
        raise Unfit(f"delivery.shards is {wanted}, but the database has {there}: set it to {there}")
    return there


async def _here(world: World, record: Session) -> Here:
    """Return where this instance is; the server does not change within an epoch."""
    started_at_us: int = await record.fetchval("select pg_postmaster_start_time()")
    return Here(world.host, record.address, started_at_us, world.settings.database.home)


def _stand_by(world: World, status: str) -> None:
    world.ready(status)
    for name in LOOPS:
        world.beats.of(name)()


class _StoppedEarly(Exception):  # noqa: N818 - not an error
    """The daemon was stopped before the loops ran."""


async def _unless_stopped(work: Awaitable[T], stop: asyncio.Event, sessions: Sessions) -> T:
    """Await work that also ends at stop, or with the loss of a session."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping, sessions.lost), return_when=asyncio.FIRST_COMPLETED)
        if sessions.lost.done():
            raise DatabaseAway(f"the session {sessions.lost.result()!r} was lost")
        if not task.done():
            raise _StoppedEarly
        return await task
    finally:
        stopping.cancel()
        task.cancel()
        await asyncio.wait((task,))


async def _in_time(work: Awaitable[T]) -> T:
    """Await short statements on sessions that are not watched yet; the bell's has no limit of its own."""
    try:
        async with asyncio.timeout(ASSEMBLE_WITHIN_S):
            return await work
    except TimeoutError:
        raise DatabaseAway(f"the sessions were not set up within {ASSEMBLE_WITHIN_S:g} s") from None


async def _assemble(world: World, sessions: Sessions, record: Session, here: Here) -> Loops:
    """Open the other sessions, check whose database this is, and build the loops around a current snapshot."""
    read, work = await sessions.read(), await sessions.work()
    await sessions.tend()
    await sessions.care()
    await sessions.bell()
    await sessions.mail()  # even without a mail server: a reload may name one, and no session is opened later
    router = NotificationRouter(world.context.monotonic)
    await read.listen("pghookd", router)
    server = await identify(sessions.all())
    await check_echo(read, work, router.echo)
    stored = [shard_of(row) for row in await record.fetch(query("read_shards"))]
    now = Snapshot(*await read.fetchval("select pg_current_snapshot()"))  # after the locks were granted
    newest = await read.fetchval(query("read_newest_event_id"))
    stays = [stay_of(row) for row in await record.fetch(query("read_home"))]
    reason = identity.why_foreign(server, stored, now, newest)
    if reason is not None:
        raise ForeignDatabase(reason)
    await _check_place(world, record, here, server, stays)
    fork = identity.forked_from(server, stored)
    if fork is not None:
        world.context.logger.warning(
            LogEvent.LOG_REANCHORED,
            timeline=server.timeline,
            stored_timeline=fork,
            note="attempts made after the fork are unknown; what receivers saw since may come again",
        )
    if await identify(sessions.all()) != server:
        raise DatabaseAway("the server restarted meanwhile")
    arrival = poison.arrive(stays, world.run)
    keys = Keys(world.settings.delivery.payload_bytes_max, world.context.wall_us)
    start = Start(read, record, work, server, stored, log_of(now, stored, keys))
    loops = Loops(world, sessions, start, router, arrival)
    await loops.begin(arrival)
    return loops


async def _check_place(
    world: World, record: Session, here: Here, server: ServerIdentity, stays: Sequence[Stay]
) -> None:
    """Compare this place with the earlier ones; store where else the database still runs.

    Raises:
        ForeignDatabase: if this is probably a copy; a RivalDatabase if the database answers elsewhere too.
    """
    database = world.settings.database
    within_s = min(former_server.ASK_WITHIN_S, database.lease_s / 4)  # the lease outlives these queries
    answers = await former_server.ask(database.url.get_secret_value(), here, server, stays, within_s=within_s)
    reason = identity.why_moved(here, stays, answers)
    if reason is None:
        return
    if (rival := identity.rival_of(answers)) is not None:
        await record.execute(query("mark_copy"), here.host, here.server, rival)
    has_rival = bool(answers) or any(stay.rival is not None for stay in stays)
    raise RivalDatabase(reason) if has_rival else ForeignDatabase(reason)
