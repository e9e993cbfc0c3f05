"""Request slots: how many requests a site and a host may have in flight, and who waits for which share.

    who                      may hold of `concurrency`       at the bound
    a site                   a half; a request that takes    its lanes wait for one of its own requests to end
                             longer than LONG_S counts twice
    a host and port          five eighths, and up to three   lanes to it wait for a request to it to end
                             quarters by sites with nothing
                             in flight
    a site that is slow      nothing of the last quarter     its lanes wait until slots are free again
    a site that has any      nothing of the last eighth      likewise
    a site that has none     all there is                    lanes wait for any slot

A holder is slow if half of its requests or more are long. For a lane that answers well the long requests of its site
count once like all others, and for one that has nothing in flight one and a half times, so that neither waits for
lanes of its site that hang. No answer is waited for to decide this: what is in flight counts while it is.

The bounds hold on a quiet platform too: a slot that a slow receiver holds cannot be taken back when others come.

Never here: which lane is next (scheduling/lanes), a clock.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

SITE_SHARE: Final = 0.5  # of all slots
HOST_SHARE: Final = 0.625
HOST_LIMIT: Final = 0.75  # with sites that have nothing else in flight
UNHURRIED: Final = 0.75  # of all slots; beyond, slow holders start nothing
RESERVED: Final = 0.875  # of all slots; beyond, only sites with nothing in flight start anything
LONG_S: Final = 1.0  # a request in flight for longer counts twice
WAKES: Final = 2  # lanes woken at most for each request that ends, of its site, of its host and of others
LOOKS: Final = 20  # holders woken in one look, and lanes of each


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class Holder:
    """A site, or a host with its port, and what it has in flight.

    Attributes:
        in_flight: requests in flight.
        long: those in flight for longer than LONG_S.
        waiting: lanes that wait for this holder's share.
    """

    in_flight: int = 0
    long: int = 0
    waiting: OrderedDict[Member, None] = dataclasses.field(default_factory=OrderedDict)

    @property
    def is_slow(self) -> bool:
        """Return True if half of its requests or more are long."""
        return self.long > 0 and 2 * self.long >= self.in_flight


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """A lane, as far as slots go.

    Attributes:
        site: whose it is.
        host: where its requests go.
        in_flight: requests in flight.
        long: those in flight for longer than LONG_S.
        proved: has answered 2xx since it was made or its breaker opened.
        waits_for: the site or host whose share it waits for; None if it does not wait.
    """

    site: Holder
    host: Holder
    in_flight: int = dataclasses.field(default=0, kw_only=True)
    long: int = dataclasses.field(default=0, kw_only=True)
    proved: bool = dataclasses.field(default=False, kw_only=True)
    waits_for: Holder | None = dataclasses.field(default=None, kw_only=True)


class Flight:
    """One request in flight.

    Attributes:
        member: the lane that it holds a slot for.
        host: where it goes; the lane's host may change meanwhile.
        started_at: monotonic seconds.
        is_long: it has been in flight for longer than LONG_S.
        landed: it has ended.
    """

    __slots__ = ("host", "is_long", "landed", "member", "started_at")

    def __init__(self, member: Member, host: Holder, started_at: float) -> None:
        self.member = member
        self.host = host
        self.started_at = started_at
        self.is_long = False
        self.landed = False


def _weight(member: Member) -> float:
    """Return how much a long request of its site counts besides, where a lane wants a slot."""
    if member.long:
        return 1.0
    if member.proved:
        return 0.0
    return 1.0 if member.in_flight else 0.5


class Slots:
    """All slots.

    Attributes:
        size: how many there are.
        in_flight: how many are taken.
        site_max: what one site may hold.
        host_max: what one host may hold, but for sites that have nothing in flight.
        host_limit: what one host may hold at all.
        plenty: while fewer are taken nobody can have reached a bound, so that nothing need be counted.
    """

    def __init__(self, size: int) -> None:
        self.in_flight = 0
        self._flights: deque[Flight] = deque()
        self._blocked: OrderedDict[Holder, None] = OrderedDict()  # those that lanes wait for
        self.resize(size)

    def resize(self, size: int) -> None:
        """Have another number of slots from now on; requests beyond it end as they began."""
        self.size = size
        self.site_max = math.ceil(size * SITE_SHARE)
        self.host_max = math.ceil(size * HOST_SHARE)
        self.host_limit = math.ceil(size * HOST_LIMIT)
        self.plenty = self.site_max // 2
        self._unhurried = math.ceil(size * UNHURRIED)
        self._reserved = math.ceil(size * RESERVED)

    def admits(self, member: Member) -> bool:
        """Return True if a lane may take a slot now; otherwise it waits until `end` or `age` returns it."""
        site, host, in_flight = member.site, member.host, self.in_flight
        if site.in_flight + _weight(member) * site.long >= self.site_max:
            self._block(member, site)
        elif host.in_flight >= (self.host_max if site.in_flight else self.host_limit):
            self._block(member, host)
        elif in_flight >= self._unhurried and site.in_flight and self._is_reserved(site, host):
            self._block(member, site)
        else:
            return True
        return False

    def _is_reserved(self, site: Holder, host: Holder) -> bool:
        """Return True if the slots that are left are not for a site that has something in flight."""
        return self.in_flight >= self._reserved or site.is_slow or host.is_slow

    def _block(self, member: Member, holder: Holder) -> None:
        member.waits_for = holder
        holder.waiting[member] = None
        self._blocked[holder] = None

    def start(self, member: Member, now: float) -> Flight:
        """Take a slot."""
        self.in_flight += 1
        member.in_flight += 1
        member.site.in_flight += 1
        member.host.in_flight += 1
        flight = Flight(member, member.host, now)
        self._flights.append(flight)
        return flight

    def end(self, member: Member, flight: Flight | None) -> Sequence[Member]:
        """Give a slot back; return the lanes that are to be looked at again."""
        site, host = member.site, member.host if flight is None else flight.host
        self.in_flight -= 1
        member.in_flight -= 1
        site.in_flight -= 1
        host.in_flight -= 1
        if flight is not None:
            flight.landed = True
            while self._flights and self._flights[0].landed:
                self._flights.popleft()
            if flight.is_long:
                member.long -= 1
                site.long -= 1
                host.long -= 1
        return self._wake_after(site, host) if self._blocked else ()

    def _wake_after(self, site: Holder, host: Holder) -> list[Member]:
        """Wake what may take the slot that a request of a site to a host has given back."""
        woken: list[Member] = []
        others = len(self._blocked)
        if site.waiting:
            others -= 1
            self._wake(site, min(WAKES, self.site_max - site.in_flight), woken)
        if host.waiting:
            others -= 1
            self._wake(host, min(WAKES, self.host_limit - host.in_flight), woken)
        if others:
            self._wake_others(site, host, woken)
        return woken

    def _wake(self, holder: Holder, most: int, woken: list[Member]) -> None:
        """Take up to so many lanes out of a holder's waiting ones, those that have waited longest first."""
        waiting = holder.waiting
        for _ in range(min(most, len(waiting))):
            member, _ = waiting.popitem(last=False)
            member.waits_for = None
            woken.append(member)
        if not waiting:
            self._blocked.pop(holder, None)

    def _wake_others(self, site: Holder, host: Holder, woken: list[Member]) -> None:
        """Wake lanes of other holders, which take turns: they may have waited for any slot to be free."""
        for _ in range(min(WAKES, len(self._blocked)) if self.in_flight < self._reserved else 0):
            holder = next(iter(self._blocked))
            self._blocked.move_to_end(holder)
            if holder is not site and holder is not host:
                self._wake(holder, 1, woken)

    def forget(self, member: Member) -> None:
        """Take a lane that has no work any more out of those that wait."""
        holder, member.waits_for = member.waits_for, None
        if holder is not None:
            del holder.waiting[member]
            if not holder.waiting:
                self._blocked.pop(holder, None)

    def age(self, now: float) -> list[Member]:
        """Count what has been in flight for longer than LONG_S as long; call it a few times a second.

        Returns:
            Lanes that wait and are to be looked at again: those that `end` woke may not have used what was free.
        """
        flights = self._flights
        while flights and (flights[0].landed or flights[0].started_at < now - LONG_S):
            flight = flights.popleft()
            if not flight.landed:
                flight.is_long = True
                flight.member.long += 1
                flight.member.site.long += 1
                flight.host.long += 1
        woken: list[Member] = []
        for _ in range(min(LOOKS, len(self._blocked))):
            holder = next(iter(self._blocked))
            self._blocked.move_to_end(holder)
            self._wake(holder, LOOKS, woken)
        return woken
