"""Resolves host names to addresses, and refuses the whole answer if any address in it is not allowed.

This is the second SSRF check: a public name may resolve to an internal address, now or at the next lookup. A mixed
answer is an attack or a fault, and the connector would try all its addresses, so none is used. c-ares makes the
lookups, because it needs no thread while it waits. With `getaddrinfo` in a thread pool, a dozen unresponsive zones
would block every other lookup for a minute.

Never here: the rules themselves (egress/destination.py), a cache (the connector and c-ares have theirs), retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence

import aiodns
import pycares
from aiohttp.abc import AbstractResolver, ResolveResult

from pghookd.egress.destination import Refusal, judge_address
from pghookd.settings.network import EgressPolicy

LOOKUP_BUDGET_S = 3.0
FORGET_S = 30.0
_QUERY_TIMEOUT_S = 1.0
_QUERY_TRIES = 3


class AddressRefused(OSError):  # noqa: N818 -- a verdict, not an error; OSError because the connector passes those on
    """An address is not allowed.

    Attributes:
        refusal: the reason. The exception's text contains no address.
    """

    TEXT = "destination refused"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(None, self.TEXT)
        self.refusal = refusal


class NameUnknown(OSError):  # noqa: N818 -- an answer, as above
    """A name has no address: it does not exist, has no address record, or no name server answered in time."""


class GuardedResolver(AbstractResolver):
    """The connector's resolver: absolute names, a budget of 3 s, every address judged.

    Args:
        policy: decides which addresses are allowed.
        nameservers: `address` or `address:port`; None for those of the system.
        budget_s: seconds for one lookup, all tries together.
        forget_s: seconds after which the cache of c-ares is emptied. That cache has no limit on its size, and keeps
            "no such address" for up to an hour.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        nameservers: Sequence[str] | None = None,
        budget_s: float = LOOKUP_BUDGET_S,
        forget_s: float = FORGET_S,
    ) -> None:
        self._policy = policy
        self._budget_s = budget_s
        self._forget_s = forget_s
        self._forget_at = time.monotonic() + forget_s
        self._dns = aiodns.DNSResolver(
            nameservers=nameservers,
            timeout=_QUERY_TIMEOUT_S,
            tries=_QUERY_TRIES,
            # Names are absolute: no search list, no aliases from the environment. A trailing dot would
            # have the same effect, but then the hosts file does not match.
            flags=pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS,
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a host.

        Raises:
            AddressRefused: at least one address is not allowed.
            NameUnknown: the host has no address.
        """
        addresses = await self._look_up(host, family)
        named = self._policy.names(host)
        for address in addresses:
            refusal = judge_address(address, self._policy, named=named)
            if refusal is not None:
                raise AddressRefused(refusal)
        return [_result(host, address, port) for address in addresses]

    async def _look_up(self, host: str, family: socket.AddressFamily) -> list[str]:
        self._forget()
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await self._dns.getaddrinfo(host, family=family, type=socket.SOCK_STREAM)
        except (aiodns.error.DNSError, TimeoutError) as exc:
            raise NameUnknown(None, "the name came to no address") from exc
        addresses = [_text(node.addr) for node in answer.nodes]
        if not addresses:
            raise NameUnknown(None, "the name came to no address")
        return addresses

    def _forget(self) -> None:
        now = time.monotonic()
        if now < self._forget_at:
            return
        self._forget_at = now + self._forget_s
        with contextlib.suppress(pycares.AresError):  # an old cache is better than no lookup
            self._dns._channel.reinit()  # noqa: SLF001 -- no public method empties the cache; tests/component/egress/test_resolver.py pins it

    async def close(self) -> None:
        """Cancel pending lookups and close the sockets."""
        await self._dns.close()


def _text(sockaddr: tuple[bytes, int] | tuple[bytes, int, int, int]) -> str:
    """Return an address as text; a scope id is kept, so that the address is refused."""
    address = sockaddr[0].decode("ascii")
    scope = sockaddr[3] if len(sockaddr) > 3 else 0  # noqa: PLR2004 -- the shape of an AF_INET6 sockaddr
    return f"{address}%{scope}" if scope else address


def _result(host: str, address: str, port: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=socket.AF_INET6 if ":" in address else socket.AF_INET,
        proto=0,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
