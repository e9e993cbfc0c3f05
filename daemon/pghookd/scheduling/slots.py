"""Request slots: how many requests a site and a host may have in flight, and which lanes wait for which share.

    owner                    may hold of `concurrency`       at the limit
    a site                   a half; a request that takes    its lanes wait for one of its own requests to end
                             longer than LONG_S counts twice
    a host and port          five eighths, and up to three   lanes to it wait for a request to it to end
                             quarters by sites with nothing
                             in flight
    a site that is slow      nothing of the last quarter     its lanes wait until slots are free again
    a site with requests     nothing of the last eighth      likewise
    a site with no requests  all of them                     lanes wait for any slot

A holder is slow if at least half of its requests are long. For a lane with a success, the long requests of its site
count once, like all others. For a lane with nothing in flight they count one and a half times. So neither waits for
hanging lanes of its site. These rules need no answers: they count only requests in flight.

The limits hold on a quiet platform too: a slot that a slow receiver holds cannot be taken back when others need it.

Never here: which lane is next (scheduling/turns), a clock.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

SITE_SHARE: Final = 0.5  # of all slots
HOST_SHARE: Final = 0.625
HOST_LIMIT: Final = 0.75  # including requests of sites that had nothing else in flight
UNHURRIED: Final = 0.75  # of all slots; beyond this, slow holders start nothing
RESERVED: Final = 0.875  # of all slots; beyond this, only sites with nothing in flight start a request
LONG_S: Final = 1.0  # a request in flight for longer is long and counts twice
WAKES: Final = 2  # maximum of lanes woken when a request ends: of its site, of its host, and of others
LOOKS: Final = 20  # maximum of holders woken in one call of `age`, and of lanes of each


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class Holder:
    """A site, or a host with its port, and its requests in flight.

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
        """Return True if at least half of its requests are long."""
        return self.long > 0 and 2 * self.long >= self.in_flight


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """The part of a lane that concerns slots.

    Attributes:
        site: the site that it belongs to.
        host: the host that its requests go to.
        in_flight: requests in flight.
        long: those in flight for longer than LONG_S.
        proved: True if it has answered 2xx since it was made or its breaker opened.
        waits_for: the site or host whose share it waits for; None if it does not wait.
    """

    site: Holder
    host: Holder
    in_flight: int = dataclasses.field(default=0, kw_only=True)
    long: int = dataclasses.field(default=0, kw_only=True)
    proved: bool = dataclasses.field(default=False, kw_only=True)
    waits_for: Holder | None = dataclasses.field(default=None, kw_only=True)


class Flight:
    """One request in flight. `Slots.start` fills it in: a constructor would cost more than the rest of a start.

    Attributes:
        member: the lane that it holds a slot for.
        host: the host that it goes to; the lane's host may change meanwhile.
        started_at: monotonic seconds.
        is_long: True if it has been in flight for longer than LONG_S.
        landed: True if it has ended.
    """

    __slots__ = ("host", "is_long", "landed", "member", "started_at")

    member: Member
    host: Holder
    started_at: float
    is_long: bool
    landed: bool


def _weight(member: Member) -> float:
    """Return the extra weight of a site's long requests when this lane wants a slot."""
    if member.long:
        return 1.0
    if member.proved:
        return 0.0
    return 1.0 if member.in_flight else 0.5


class Slots:
    """All slots.

    Attributes:
        size: number of slots.
        in_flight: number of slots taken.
        site_max: slots that one site may hold.
        host_max: slots that one host may hold, unless the requesting site has nothing in flight.
        host_limit: slots that one host may hold in any case.
        plenty: while fewer slots are taken, no limit can be reached and none needs to be checked.
    """

    def __init__(self, size: int) -> None:
        self.in_flight = 0
        self._flights: deque[Flight] = deque()
        self._blocked: OrderedDict[Holder, None] = OrderedDict()  # holders that lanes wait for
        self.resize(size)

    def resize(self, size: int) -> None:
        """Set the number of slots; requests in flight beyond it are not affected."""
        self.size = size
        self.site_max = math.ceil(size * SITE_SHARE)
        self.host_max = math.ceil(size * HOST_SHARE)
        self.host_limit = math.ceil(size * HOST_LIMIT)
        self.plenty = self.site_max // 2
        self._unhurried = math.ceil(size * UNHURRIED)
        self._reserved = math.ceil(size * RESERVED)

    def admits(self, member: Member) -> bool:
        """Return True if a lane may take a slot now; if not, it waits until `end` or `age` returns it."""
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
        """Return True if the slots left are reserved for idle sites, or for holders that are not slow."""
        return self.in_flight >= self._reserved or site.is_slow or host.is_slow

    def _block(self, member: Member, holder: Holder) -> None:
        member.waits_for = holder
        holder.waiting[member] = None
        self._blocked[holder] = None

    def start(self, member: Member, now: float) -> Flight:
        """Take a slot."""
        host = member.host
        self.in_flight += 1
        member.in_flight += 1
        member.site.in_flight += 1
        host.in_flight += 1
        flight = Flight()
        flight.member, flight.host, flight.started_at = member, host, now
        flight.is_long = flight.landed = False
        self._flights.append(flight)
        return flight

    def end(self, member: Member, flight: object) -> Sequence[Member]:
        """Release the slot that `start` returned; return the lanes that may take part in the turns again."""
        site, host = member.site, member.host
        if isinstance(flight, Flight):
            host, flight.landed = flight.host, True
            while self._flights and self._flights[0].landed:
                self._flights.popleft()
            if flight.is_long:
                member.long -= 1
                site.long -= 1
                host.long -= 1
        self.in_flight -= 1
        member.in_flight -= 1
        site.in_flight -= 1
        host.in_flight -= 1
        return self._wake_after(site, host) if self._blocked else ()

    def _wake_after(self, site: Holder, host: Holder) -> list[Member]:
        """Return lanes that may take the slot which a request of this site to this host has released."""
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
        """Move up to `most` of a holder's waiting lanes to `woken`, the longest waiting first."""
        waiting = holder.waiting
        for _ in range(min(most, len(waiting))):
            member, _ = waiting.popitem(last=False)
            member.waits_for = None
            woken.append(member)
        if not waiting:
            self._blocked.pop(holder, None)

    def _wake_others(self, site: Holder, host: Holder, woken: list[Member]) -> None:
        """Wake lanes of other holders, in turns: they may have waited for any free slot."""
        for _ in range(min(WAKES, len(self._blocked)) if self.in_flight < self._reserved else 0):
            holder = next(iter(self._blocked))
            self._blocked.move_to_end(holder)
            if holder is not site and holder is not host:
                self._wake(holder, 1, woken)

    def forget(self, member: Member) -> None:
        """Remove a lane that has no more work from the waiting lanes."""
        holder, member.waits_for = member.waits_for, None
        if holder is not None:
            del holder.waiting[member]
            if not holder.waiting:
                self._blocked.pop(holder, None)

    def age(self, now: float) -> list[Member]:
        """Count requests in flight for longer than LONG_S as long; call it a few times a second.

        Returns:
            Waiting lanes that may take part in the turns again: lanes woken by `end` may have left slots unused.
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
