"""OAuth2 tokens from a real token server in TLS: one request for many, expiry, and answers that are not tokens."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json

import pytest

from pghookd.delivery.oauth_tokens import Tokens
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, parse_places
from pghookd.webhook.auth import ClientCredentials
from pghookd.webhook.oauth import Granted
from support.fault_server import Certificates, Receiver, answering, receiving

LOOPBACK = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@dataclasses.dataclass
class World:
    """A token server, its requests, its answers, and a clock."""

    receiver: Receiver
    sender: Sender
    asked: list
    answers: list
    hold: asyncio.Event
    came: asyncio.Event
    now: float = 1000.0

    def tokens(self, **changes):
        asked = {"token_url": self.url, "client_id": "me", "client_secret": "s"} | changes
        return Tokens(self.sender, ClientCredentials(**asked), "tests", lambda: self.now)

    @property
    def url(self):
        return f"https://127.0.0.1:{self.receiver.port}/token?x=1"


def http(status, body, *lines):
    more = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def token(text, **more):
    return http(200, json.dumps({"access_token": text, "token_type": "bearer"} | more).encode())


@contextlib.asynccontextmanager
async def world(authority, *answers, policy=LOOPBACK):
    asked, left, hold, came = [], list(answers), asyncio.Event(), asyncio.Event()
    hold.set()

    async def handler(visit):
        while True:
            asked.append(await visit.request())
            came.set()
            await hold.wait()
            await visit.send(left.pop(0) if len(left) > 1 else left[0])

    sender = Sender(
        policy=policy,
        connections_max=8,
        connect_timeout_s=5.0,
        response_bytes_max=10,
        ca_file=str(authority.ca_file),
    )
    context = authority.server_context("token", "IP:127.0.0.1")
    async with receiving(handler, tls=context) as receiver, sender:
        yield World(receiver, sender, asked, left, hold, came)


def line(text):
    return f"authorization: Bearer {text}\r\n".encode()


async def test_the_request_is_that_of_the_rfc(authority):
    async with world(authority, token("t")) as it:
        assert (await it.tokens(scope="write").token()).line == line("t")
    ((head, body),) = it.asked
    assert body == b"grant_type=client_credentials&scope=write"
    lines = head.decode().split("\r\n")
    assert lines[:2] == ["POST /token?x=1 HTTP/1.1", f"host: 127.0.0.1:{it.receiver.port}"]
    assert "authorization: Basic bWU6cw==" in lines
    assert "content-type: application/x-www-form-urlencoded" in lines


async def test_many_wait_for_one_request_and_use_it_until_its_end(authority):
    async with world(authority, token("one", expires_in=100), token("two")) as it:
        tokens = it.tokens()
        it.hold.clear()
        waiting = [asyncio.create_task(tokens.token()) for _ in range(50)]
        await asyncio.wait_for(it.came.wait(), 10)
        it.hold.set()
        assert {each.line for each in await asyncio.gather(*waiting)} == {line("one")}
        it.now += 89.9
        assert (await tokens.token()).line == line("one")
        it.now += 0.2
        assert (await tokens.token()).line == line("two")
        assert len(it.asked) == 2
        assert "Bearer" not in repr(tokens) + repr(waiting)


async def test_one_that_the_receiver_refuses_is_dropped_and_a_newer_one_is_not(authority):
    async with world(authority, token("one"), token("two")) as it:
        tokens = it.tokens()
        first = await tokens.token()
        tokens.heed(first, Reply(403))
        assert await tokens.token() is first
        tokens.heed(first, Reply(401))
        second = await tokens.token()
        tokens.heed(first, Reply(401))
        assert await tokens.token() is second
        assert (second.line, len(it.asked)) == (line("two"), 2)


async def test_a_failure_is_shared_and_the_next_one_requests_again(authority):
    no = http(401, b'{"error": "invalid_client"}')
    async with world(authority, no, token("t", expires_in=0), token("u")) as it:
        tokens = it.tokens()
        it.hold.clear()
        waiting = [asyncio.create_task(tokens.token()) for _ in range(5)]
        await asyncio.wait_for(it.came.wait(), 10)
        it.hold.set()
        assert set(await asyncio.gather(*waiting)) == {Fault(Outcome.REFUSED, "oauth2: 401 invalid_client")}
        assert (await tokens.token()).line == line("t")
        assert (await tokens.token()).line == line("u"), "a token of no time is used once"


async def test_a_cancelled_request_frees_the_others_and_the_next_fetches_a_token(authority):
    async with world(authority, token("t")) as it:
        tokens = it.tokens()
        it.hold.clear()
        first, second, third = (asyncio.create_task(tokens.token()) for _ in range(3))
        await asyncio.wait_for(it.came.wait(), 10)
        second.cancel()
        first.cancel()
        assert await third == Fault(Outcome.FAILED, "oauth2: given_up")
        it.hold.set()
        assert (await tokens.token()).line == line("t")


async def test_a_long_token_is_kept_whole_whatever_is_stored_of_answers(authority):
    async with world(authority, token("t" * 8000)) as it:
        assert (await it.tokens().token()).line == line("t" * 8000)


HOSTILE = {
    "huge": (token("t" * 60_000), "refused", "oauth2: no_token"),
    "too huge": (token("t" * 200_000), "refused", "oauth2: no_token"),
    "for ever": (b"HTTP/1.1 200 OK\r\na: " + b"b" * 200_000, "unreachable", "oauth2: bad_response"),
    "no json": (http(200, b"<html>canary</html>"), "refused", "oauth2: no_token"),
    "a header in it": (token("t\r\nx: y"), "refused", "oauth2: no_token"),
    "a bomb": (http(200, b"\x1f\x8b" + bytes(1000), "Content-Encoding: gzip"), "refused", "oauth2: no_token"),
    "an error": (http(500, b'{"error": "canary\\r\\n"}'), "refused", "oauth2: 500"),
    "no http": (b"canary\r\n\r\n", "unreachable", "oauth2: bad_response"),
    "gone": (http(410, b""), "refused", "oauth2: 410"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_an_invalid_token_is_refused(authority, kind):
    data, outcome, error = HOSTILE[kind]
    async with world(authority, data) as it:
        found = await it.tokens().token()
    assert (found.outcome.value, found.error) == (outcome, error)
    assert "canary" not in repr(found)


async def test_a_redirect_is_not_followed(authority):
    context = authority.server_context("canary", "IP:127.0.0.1")
    async with receiving(answering(token("stolen")), tls=context) as canary:
        place = f"Location: https://127.0.0.1:{canary.port}/"
        async with world(authority, http(302, b"", place), http(307, b"", place)) as it:
            tokens = it.tokens()
            assert await tokens.token() == Fault(Outcome.REFUSED, "oauth2: 302")
            assert await tokens.token() == Fault(Outcome.REFUSED, "oauth2: 307")
    assert canary.connections == 0


async def test_a_token_server_is_a_destination_as_any_other(authority):
    async with world(authority, token("t"), policy=EgressPolicy()) as it:
        assert await it.tokens().token() == Fault(Outcome.BLOCKED, "oauth2: literal")
        blocked = it.tokens(token_url="https://169.254.169.254/latest")
        assert await blocked.token() == Fault(Outcome.BLOCKED, "oauth2: literal")
    assert it.receiver.connections == 0
    closed = it.receiver.port
    async with world(authority, token("t")) as it:
        gone = it.tokens(token_url=f"https://127.0.0.1:{closed}/")
        assert await gone.token() == Fault(Outcome.UNREACHABLE, "oauth2: refused")


async def test_its_certificate_is_verified(authority, tmp_path):
    other = Certificates(tmp_path)
    async with (
        world(authority, token("t")) as it,
        receiving(answering(token("t")), tls=other.server_context("x", "IP:127.0.0.1")) as stranger,
    ):
        found = await it.tokens(token_url=f"https://127.0.0.1:{stranger.port}/").token()
    assert found == Fault(Outcome.UNREACHABLE, "oauth2: tls_untrusted")
    assert not isinstance(found, Granted)
