"""Gets and caches one endpoint's OAuth2 token: one POST, through the same sender as deliveries.

The sender decides for token endpoints as for receivers which destinations are allowed, which TLS is required, and how
much of a response is read. A token is kept only in memory. Concurrent deliveries that need one wait for one request and
share its result.

Never here: the texts of the protocol (webhook/oauth.py), the endpoint's own client certificate, and a token in a log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from pghookd.egress.sender import Sender
from pghookd.model.delivery import Answer, Fault, Outcome, Reply
from pghookd.webhook import oauth
from pghookd.webhook.auth import ClientCredentials
from pghookd.webhook.oauth import Granted

TIMEOUT_S: Final = 5.0  # of a token request
_UNAUTHORIZED: Final = 401
_GIVEN_UP: Final = oauth.unavailable(Fault(Outcome.FAILED, "given_up"))


class Tokens:
    """The token of one endpoint. Use it within one event loop.

    Args:
        sender: makes the request.
        credentials: the client credentials for the request.
        user_agent: setting `delivery.user_agent`.
        monotonic: a clock in seconds.
    """

    def __init__(
        self,
        sender: Sender,
        credentials: ClientCredentials,
        user_agent: str,
        monotonic: Callable[[], float],
    ) -> None:
        self._sender = sender
        self._target = sender.target_of(credentials.token_url)
        self._head, self._body = oauth.question(credentials, user_agent)
        self._monotonic = monotonic
        self._kept: Granted | None = None
        self._kept_until = 0.0
        self._asking: asyncio.Future[Granted | Fault] | None = None

    async def token(self) -> Granted | Fault:
        """Return a token that is valid now, or a fault marked as the token endpoint's."""
        if self._kept is not None and self._monotonic() < self._kept_until:
            return self._kept
        if self._asking is not None:
            return await asyncio.shield(self._asking)
        asking = self._asking = asyncio.get_running_loop().create_future()
        found: Granted | Fault = _GIVEN_UP
        try:
            found = await self._ask()
        finally:
            self._asking = None
            asking.set_result(found)
        return found

    def heed(self, token: Granted, answer: Answer) -> None:
        """Discard a token that the receiver rejected (401), unless a newer one has replaced it."""
        if self._kept is token and isinstance(answer, Reply) and answer.status == _UNAUTHORIZED:
            self._kept = None

    async def _ask(self) -> Granted | Fault:
        if isinstance(self._target, Fault):
            return oauth.unavailable(self._target)
        began = self._monotonic()
        answer = await self._sender.post(
            self._target, self._head, self._body, TIMEOUT_S, kept_bytes=oauth.ANSWER_BYTES_MAX
        )
        if isinstance(answer, Fault):
            return oauth.unavailable(answer)
        found = oauth.granted(answer.status, answer.body)
        if isinstance(found, Granted):
            self._kept, self._kept_until = found, began + found.use_for_s
        return found
