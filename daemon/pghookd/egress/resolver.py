"""Turns host names into addresses, and refuses the whole answer if any address of it is not allowed.

The second of the gates between a customer's URL and the inside of the house: a public name may point to an
inner address, now or at the next lookup. A mixed answer is an attack or a fault, so nothing of it is used:
a connector that is given one good and one bad address tries them all. Lookups are made by c-ares, which
holds no thread while it waits; with `getaddrinfo` in a thread pool a dozen dead zones would stop every
other lookup for a minute.

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
        refusal: why. The exception's text holds no address.
    """

    TEXT = "destination refused"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(None, self.TEXT)
        self.refusal = refusal


class NameUnknown(OSError):  # noqa: N818 -- an answer, as above
    """A name came to no address: it does not exist, has none, or nobody answered in time."""


class GuardedResolver(AbstractResolver):
    """The resolver of the connector: absolute names, a budget of 3 s, every address judged.

    Args:
        policy: what addresses are allowed.
        nameservers: `address` or `address:port`; those of the system if None.
        budget_s: seconds for one lookup, all tries together.
        forget_s: seconds after which what c-ares remembers of earlier answers is dropped. It has no bound in
            number, and keeps "no such address" for up to an hour.
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
            # say the same, but then the hosts file does not match.
            flags=pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS,
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look a host up.

        Raises:
            AddressRefused: at least one address is not allowed.
            NameUnknown: there is no address.
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
        with contextlib.suppress(pycares.AresError):  # the old memory is better than no lookup
            self._dns._channel.reinit()  # noqa: SLF001 -- nothing public empties it; tests/component/test_resolver.py pins it

    async def close(self) -> None:
        """End lookups that are under way and let go of the sockets."""
        await self._dns.close()


def _text(sockaddr: tuple[bytes, int] | tuple[bytes, int, int, int]) -> str:
    """Give an address as text; a scope id stays visible, so that it is refused."""
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
