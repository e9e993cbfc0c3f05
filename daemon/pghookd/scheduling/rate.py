"""Ramp-up, rate limits and pauses: when the deliveries of one endpoint may start, and how many of a replay are due.

A pace keeps a receiver that has just recovered from being overwhelmed. Each success adds the same amount. So the pace
grows by a factor of e every `grow_s` seconds if all succeed, and no faster than the receiver answers. A failure halves
it, at most once in `grow_s` seconds. So it falls if more than 3 in 10 fail, and grows otherwise: it is halved, and
multiplied by e to the power of the share of successes.

A rate is the endpoint's own limit, its column `rate_per_s`. Neither successes nor failures change it.

A meter counts how many deliveries of a replay are due at its rate. Time missed between two calls is made up for, up to
one second. The rest is lost, so that no burst follows.

Never here: a clock, the deliveries.
"""

from __future__ import annotations

import dataclasses
from typing import Final

START_PER_S: Final = 5.0
LEAST_PER_S: Final = 1.0
ENOUGH_PER_S: Final = 1000.0  # beyond this a pace is dropped: the lane's width is the limit
CREDIT_S: Final = 0.05  # a start that is late by up to this much is made up for
RATE_CREDIT_S: Final = 0.1  # the same for a rate, so that any second has at most a tenth too many starts
METER_CREDIT_S: Final = 1.0  # the same for a meter


@dataclasses.dataclass(slots=True, eq=False)
class Pace:
    """A time before which nothing may start, and the interval to the next.

    Attributes:
        not_before: monotonic seconds before which nothing may start.
        per_s: starts per second.
        grow_s: seconds in which it grows by a factor of e.
        halved_at: monotonic seconds at which a failure last halved it.
    """

    not_before: float
    per_s: float = START_PER_S
    grow_s: float = 10.0
    halved_at: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - CREDIT_S) + 1.0 / self.per_s

    def grow(self) -> bool:
        """Count a success; return True if the pace is no longer needed."""
        self.per_s += 1.0 / self.grow_s
        return self.per_s > ENOUGH_PER_S

    def halve(self, now: float) -> None:
        """Halve the pace after a failure, at most once in `grow_s` seconds."""
        if now - self.halved_at >= self.grow_s:
            self.halved_at = now
            self.per_s = max(LEAST_PER_S, self.per_s / 2)


@dataclasses.dataclass(slots=True, eq=False)
class Rate:
    """An even rate limit: each start delays the next one by 1 / per_s seconds (GCRA, ITU-T I.371).

    Attributes:
        per_s: starts per second, above 0.
        not_before: monotonic seconds before which nothing may start.
    """

    per_s: float
    not_before: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - RATE_CREDIT_S) + 1.0 / self.per_s

    def is_used_up(self, now: float) -> bool:
        """Return True if this rate holds deliveries back; False if starts are late for another reason."""
        return self.not_before > now - RATE_CREDIT_S


@dataclasses.dataclass(slots=True, eq=False)
class Throttle:
    """When the requests of one endpoint may start: the rate, a pause, and the pace of catch-up.

    Attributes:
        rate: limits how often requests may start; None if the endpoint has none.
        paused_until: monotonic seconds before which nothing starts; 0 if it is not paused.
        asked_to_pause: True if the receiver asked for the pause, so that late work goes out at a pace after it.
        active: True if there is a rate or a pause, which must be checked before each start.
        pace: how fast late deliveries start during catch-up; None if nothing holds them back.
    """

    rate: Rate | None = None
    paused_until: float = 0.0
    asked_to_pause: bool = False
    active: bool = False
    pace: Pace | None = None

    def set_rate(self, per_s: float | None) -> None:
        """Apply the endpoint's rate; an unchanged rate keeps its state."""
        if per_s is None:
            self.rate = None
        elif self.rate is None or self.rate.per_s != per_s:
            self.rate = Rate(per_s)
        self._note()

    def pause(self, wait_s: float, now: float, *, asked: bool) -> None:
        """Pause for so many seconds; a longer pause goes on."""
        self.asked_to_pause = self.asked_to_pause or asked
        self.paused_until = max(self.paused_until, now + wait_s)
        self._note()

    def end_pause(self) -> bool:
        """End the pause; return True if the receiver asked for it."""
        asked, self.asked_to_pause = self.asked_to_pause, False
        self.paused_until = 0.0
        self._note()
        return asked

    def _note(self) -> None:
        self.active = self.rate is not None or self.paused_until > 0

    def opens_at(self) -> float:
        """Return the time before which pause and rate let nothing start, monotonic seconds."""
        return self.paused_until if self.rate is None else max(self.paused_until, self.rate.not_before)

    def is_shut(self, now: float) -> bool:
        """Return True if deliveries wait for the end of a pause, or for the rate."""
        return self.paused_until > now or (self.rate is not None and self.rate.is_used_up(now))

    def started(self, now: float) -> None:
        """Count a start."""
        if self.rate is not None:
            self.rate.started(now)

    def ramp_up(self, now: float, grow_s: float) -> None:
        """Limit late work to a pace from now on, unless it already has one."""
        if self.pace is None:
            self.pace = Pace(now, grow_s=grow_s)

    def grow(self) -> None:
        """Count a success during catch-up, and end the pace once it limits nothing."""
        if self.pace is not None and self.pace.grow():
            self.pace = None

    def end_pace(self) -> None:
        """Drop the pace: late work may start as fast as the rest."""
        self.pace = None

    @property
    def late_per_s(self) -> float | None:
        """Late deliveries that may start per second; None if nothing limits them."""
        known = [each.per_s for each in (self.pace, self.rate) if each is not None]
        return min(known) if known else None


@dataclasses.dataclass(slots=True, eq=False)
class Meter:
    """The rate of a replay, its start, and the number taken since.

    Attributes:
        per_s: deliveries per second, more than 0.
        began: monotonic seconds from which the rate counts.
        taken: deliveries taken since `began`.
    """

    per_s: float
    began: float
    taken: int = 0

    def due(self, now: float) -> int:
        """Return how many may be taken now."""
        behind = now - self.began - self.taken / self.per_s
        if behind > METER_CREDIT_S + 1.0 / self.per_s:  # a fraction of a delivery is not missed yet
            self.began += behind - max(METER_CREDIT_S, 1.0 / self.per_s)
        return int((now - self.began) * self.per_s + 1e-6) - self.taken
