"""Delivers: takes the next delivery, has it attempted, and hands the outcome to its lane and to the recorder.

A worker continues as long as there is a next delivery and a slot for it. There is no task per delivery and no timer per
request.

Never here: what one attempt consists of (attempt).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import orjson

from pghookd.delivery.attempt import Attempts, DeliveryTerms, Gate, Guard, park
from pghookd.delivery.payloads import PayloadLoader
from pghookd.egress.sender import Sender
from pghookd.model import verdict
from pghookd.model.delivery import Delivery, Outcome, Reason, State
from pghookd.model.delivery_states import NOT_LOST
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite, Write
from pghookd.postgres.client import Session
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.scheduling.lane import Lane
from pghookd.scheduling.lanes import Lanes

TIMER_LEAST_S: Final = 0.005  # if the time has come but the lane is held back otherwise, check this often
STARTS_A_TURN: Final = 16  # requests started in one turn of the event loop; 0.15 to 0.5 ms each


class Deliverer:
    """Runs the requests in flight."""

    def __init__(
        self,
        sender: Sender,
        lanes: Lanes,
        gate: Gate,
        loader: Session,
        terms: DeliveryTerms,
        context: Context,
        *,
        beat: Callable[[], None],
        suspects: Guard | None = None,
    ) -> None:
        self._attempts = Attempts(sender, lanes, gate, terms, context, suspects=suspects)
        self._lanes = lanes
        self._turns = lanes.turns
        self._gate = gate
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._random01 = context.random01
        self._beat = beat
        self._loader = PayloadLoader(
            loader, lanes.turns.loads, payload_bytes_max=terms.payload_bytes_max, loaded=self.kick
        )
        self._group: asyncio.TaskGroup | None = None
        self._stopping = False
        self._idle = asyncio.Event()
        self._starts = 0  # requests started in this turn of the event loop
        self._timer: asyncio.TimerHandle | None = None  # for lanes that wait for a time
        self._timer_at = 0.0

    def apply(self, sender: Sender, terms: DeliveryTerms) -> None:
        """Start all further requests with this sender and these terms."""
        self._attempts.apply(sender, terms)
        self._loader.payload_bytes_max = terms.payload_bytes_max

    async def run(self) -> None:
        """Run the task group of the workers until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._loader.run())
                while True:
                    self.kick()
                    self._beat()
                    await asyncio.sleep(1.0)
        finally:
            self._group = None  # later callbacks must not start tasks in a group that has ended
            if self._timer is not None:
                self._timer.cancel()

    def kick(self) -> None:
        """Start workers for deliveries that may start now; the next turn of the event loop continues if there are many.

        Call it whenever there is more work or more room.
        """
        while self._group is not None and (taken := self._take(self._monotonic())) is not None:
            work = self._work(*taken)
            try:
                self._group.create_task(work)
            except RuntimeError:  # the group is ending, and the epoch with it
                work.close()
                self._group = None
        if self._group is not None:
            self._rest()

    def _rest(self) -> None:
        """Arrange what lanes wait for: a time, or a payload."""
        if self._turns.loads:
            self._loader.wake()
        self._set_timer()

    def _set_timer(self) -> None:
        """Wake up when the first lane with a ramp-up, a rate or a pause may continue: one timer for all lanes."""
        at = self._turns.rests_until
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        wait_s = max(TIMER_LEAST_S, at - self._monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.kick()

    async def drain(self, grace_s: float) -> bool:
        """Start nothing more and wait for requests in flight; return True if all of them ended in time."""
        self._stopping = True
        if not self._turns.in_flight:
            return True
        self._idle.clear()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, now: float) -> tuple[Lane, Delivery] | None:
        terms = self._attempts.terms
        if self._stopping or self._starts >= STARTS_A_TURN or self._gate.closed(now):
            return None
        if self._turns.in_flight + self._gate.unrecorded >= terms.concurrency + terms.batch_max:
            return None
        taken = self._turns.next(now)
        if taken is not None:
            if not self._starts:
                asyncio.get_running_loop().call_soon(self._begin_turn)
            self._starts += 1
        return taken

    def _begin_turn(self) -> None:
        """Allow more starts, and continue with what the last turn left.

        Without this limit a site with fast receivers fills each turn with its requests. Every step towards another
        site's request then waits for all of them.
        """
        is_more = self._starts >= STARTS_A_TURN
        self._starts = 0
        if is_more:
            self.kick()

    async def _work(self, lane: Lane, delivery: Delivery) -> None:
        while True:
            write = await self._attempts.make(lane, delivery)
            now = self._monotonic()
            if isinstance(write, AttemptWrite) and write.outcome is Outcome.DELIVERED:
                if self._lanes.succeeded(lane, delivery, now, write.duration_ms / 1e3):
                    self._log_breaker(LogEvent.BREAKER_CLOSED, lane)
                self._gate.put(write, now)
            else:
                self._fail(lane, write, now)
            taken = self._take(now)
            if taken is None:
                self._rest()
                break
            lane, delivery = taken
            if not self._turns.starving:
                self.kick()  # slow start: one success makes room for more than this worker
        if self._stopping and not self._turns.in_flight:
            self._idle.set()

    def _fail(self, lane: Lane, write: Write, now: float) -> None:
        """Record a failure; deliveries that its lane must not keep are parked or held."""
        if not isinstance(write, AttemptWrite):
            self._leave_unsent(lane, write, now)
            return
        counts = write.outcome not in {Outcome.FAILED, Outcome.BLOCKED}
        hung = write.outcome is Outcome.TIMEOUT
        opened = self._lanes.failed(lane, write.delivery, now, self._random01(), counts=counts, hung=hung)
        self._gate.put(write, now)
        if opened is not None:
            self._log_breaker(LogEvent.BREAKER_OPENED, lane, probe_s=round(lane.breaker.probe_at - now, 1))
            park(self._lanes, self._gate, opened, Reason.BREAKER_OPEN, now)
        self._log(write)
        if isinstance(write.verdict, verdict.Disable):
            for queued in self._lanes.disable(lane):
                self._gate.put(BacklogWrite(queued, State.HELD, Reason.DISABLED), now)
        if isinstance(write.verdict, verdict.Dead):
            self._log_death(write.delivery, write.verdict.reason)

    def _leave_unsent(self, lane: Lane, write: BacklogWrite | DeadWrite, now: float) -> None:
        """Release a delivery that ended without a request; it neither slows the lane nor counts for the endpoint."""
        self._lanes.unsent(lane, write.delivery)
        self._gate.put(write, now)
        if isinstance(write, DeadWrite) and write.reason not in NOT_LOST:
            self._log_death(write.delivery, write.reason)

    # Log lines --------------------------------------------------------------------------------------------------------

    def _log(self, write: AttemptWrite) -> None:
        way = orjson.loads(write.evidence or "{}")
        self._logger.info(
            LogEvent.DELIVERY_ATTEMPTED,
            event_id=write.delivery.event.event_id,
            endpoint_id=write.delivery.endpoint_id,
            site_id=write.delivery.event.site_id,
            attempt=write.delivery.attempts + 1,
            outcome=write.outcome.value,
            status=write.status,
            error=write.error,
            duration_ms=round(write.duration_ms, 1),
            revision=write.revision,
            address=way.get("address"),
            reached=way.get("reached"),
        )

    def _log_breaker(self, event: LogEvent, lane: Lane, **more: object) -> None:
        self._logger.warning(event, endpoint_id=lane.key.endpoint_id, site_id=lane.key.site_id, **more)

    def _log_death(self, delivery: Delivery, reason: Reason) -> None:
        self._logger.warning(
            LogEvent.DELIVERY_DIED,
            event_id=delivery.event.event_id,
            endpoint_id=delivery.endpoint_id,
            site_id=delivery.event.site_id,
            reason=reason.value,
        )
