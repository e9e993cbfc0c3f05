"""Hostile and faulty answers, and the sender's outcome of each; and the parts of aiohttp that it relies on."""

# ruff: noqa: ARG002 -- handlers and resolvers have the arguments of their kind, used or not
# ruff: noqa: ASYNC110 -- what these wait for has no event of its own
import asyncio
import errno
import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest

from pghookd.egress.resolver import AddressRefused, GuardedResolver, Refusal
from pghookd.egress.sender import CROWDED_S, KEEPALIVE_S, SWEEP_S, Sender, _os_fault
from pghookd.egress.tls import trust
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, parse_places
from support.fault_server import Certificates, Liar, answering, naming, receiving

LOOPBACK = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = b'{"id":"evt_1"}'
PURE_PYTHON = "AIOHTTP_NO_EXTENSIONS"


def sender(**changes):
    settings = {
        "policy": LOOPBACK,
        "connections_max": 8,
        "connect_timeout_s": 2.0,
        "response_bytes_max": 4096,
        **changes,
    }
    return Sender(**settings)


async def post_to(sending, url, *, body=BODY, timeout_s=5.0):
    target = sending.target_of(url)
    if isinstance(target, Fault):
        return target
    head = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return await sending.post(target, head, body, timeout_s)


async def exchange(handler, *, times=1, timeout_s=5.0, body=BODY, path="/hook"):
    """Post to a receiver that behaves like `handler`; the last answer, and the receiver."""
    async with receiving(handler) as receiver, sender() as sending:
        for _ in range(times):
            answer = await post_to(
                sending, f"http://127.0.0.1:{receiver.port}{path}", timeout_s=timeout_s, body=body
            )
    return answer, receiver


def raw(data, *, then="wait"):
    """Read a request, send these bytes, then wait, close or reset."""

    async def handler(visit):
        await visit.request()
        await visit.send(data)
        if then == "wait":
            await visit.gone()
        elif then == "reset":
            visit.reset()

    return handler


def response(status, *lines, body=b""):
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}"))
    return head.encode("latin-1") + b"\r\n" + body


def unreachable(name):
    return Fault(Outcome.UNREACHABLE, name)


# The request


async def test_the_request_has_the_given_bytes_and_nothing_else():
    seen = []

    async def handler(visit):
        seen.append(await visit.request())
        await visit.send(OK)

    async with receiving(handler) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/%2f%7E/../a?b=%zz#frag"
        assert await post_to(sending, url) == Reply(200, b"ok")
    assert seen == [
        (
            b"POST /%%2f%%7E/../a?b=%%zz HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
            b"content-type: application/json\r\ncontent-length: 14\r\n\r\n" % receiver.port,
            BODY,
        )
    ]


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 3_000_000])
async def test_bodies_of_any_size_arrive_whole(size):
    seen = []

    async def handler(visit):
        while True:
            seen.append(await visit.request())
            await visit.send(OK)

    body = os.urandom(size)
    answer, receiver = await exchange(handler, body=body, times=2)
    assert answer == Reply(200, b"ok")
    assert [got for _, got in seen] == [body, body]
    assert receiver.connections == 1


# Answers


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK, Reply(200, b"ok")),
        (response("204 No Content"), Reply(204)),
        (b"HTTP/1.1 204\r\n\r\n", Reply(204)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Reply(200, b"ok")),
        (response("299 Odd"), Reply(299)),
        (response("302 Found", "Location: http://127.0.0.1/x"), Reply(302, location="http://127.0.0.1/x")),
        (response("307 T", "Location: /y", body=b"moved"), Reply(307, b"moved", location="/y")),
        (response("304 Not Modified"), Reply(304)),
        (response("410 Gone", body=b"bye"), Reply(410, b"bye")),
        (response("429 Slow down", "Retry-After: 120"), Reply(429, retry_after="120")),
        (
            response("503 Later", "retry-after: Wed, 21 Oct 2026 07:28:00 GMT"),
            Reply(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"),
        ),
        (response("200 OK", "Webhook-Delivery:  Disable "), Reply(200, control="disable")),
        (response("400 No", "webhook-delivery: abort-message"), Reply(400, control="abort-message")),
        (response("599 Odd"), Reply(599)),
        (response("302 F", "Location: /\xff\xfe"), Reply(302, location="/\ufffd\ufffd")),
        (response("500 Oh", "Set-Cookie: a=b", "WWW-Authenticate: Basic", body=b"x\x00\xff"), Reply(500, b"x\x00\xff")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Reply(200, b"ok")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Reply(200, b"ok")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 20 + OK, Reply(200, b"ok")),
        (
            response("200 OK", "Content-Encoding: gzip", body=b"\x1f\x8bnot really"),
            Reply(200, b"\x1f\x8bnot really"),
        ),
    ],
)  # fmt: skip
async def test_answers(data, expected):
    answer, receiver = await exchange(raw(data))
    assert answer == expected
    assert receiver.connections == 1


async def test_only_the_beginning_of_a_body_is_kept():
    answer, receiver = await exchange(answering(response("200 OK", body=b"a" * 10_000)), times=3)
    assert answer == Reply(200, b"a" * 4096)
    assert receiver.connections == 1


async def test_a_body_that_ends_with_the_connection():
    answer, _ = await exchange(raw(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", then="close"))
    assert answer == Reply(200, b"until the end")


async def test_a_head_that_comes_byte_by_byte():
    async def handler(visit):
        await visit.request()
        for byte in response("200 OK", "Webhook-Delivery: disable", body=b"slow"):
            await visit.send(bytes([byte]))
            await asyncio.sleep(0)
        await visit.gone()

    answer, _ = await exchange(handler)
    assert answer == Reply(200, b"slow", control="disable")


# The head decides


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


async def test_a_body_that_stalls_leaves_the_answer():
    started = time.monotonic()
    answer, _ = await exchange(raw(HEAD + b"abc"), timeout_s=0.3)
    assert answer == Reply(200, b"abc")
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_body_that_breaks_off_leaves_the_answer(then):
    answer, _ = await exchange(raw(HEAD + b"abc", then=then))
    assert isinstance(answer, Reply)
    assert answer.status == 200
    assert answer.body in {b"abc", b""}  # a reset may overtake the answer


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno chunk",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokXX",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_broken_framing_after_the_head_leaves_the_answer(data, apart):
    async def handler(visit):
        await visit.request()
        if apart:
            cut = data.rindex(b"\r\n\r\n") + 4
            await visit.send(data[:cut])
            await asyncio.sleep(0.05)  # so that the head comes alone
            await visit.send(data[cut:])
        else:
            await visit.send(data)
        await visit.gone()

    started = time.monotonic()
    answer, receiver = await exchange(handler, timeout_s=5)
    assert isinstance(answer, Reply)
    assert answer.status in {200, 204}
    assert time.monotonic() - started < 2
    assert receiver.connections == 1


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 9999999999\r\n\r\n"]
)
async def test_an_endless_body_is_cut(head):
    sent = 0

    async def handler(visit):
        nonlocal sent
        await visit.request()
        await visit.send(head)
        while True:
            await visit.send(b"a" * 65536)
            sent += 65536

    started = time.monotonic()
    answer, _ = await exchange(handler, timeout_s=20)
    assert answer == Reply(int(head.split()[1]), b"a" * 4096)
    assert time.monotonic() - started < 3
    assert sent < 20_000_000  # what the kernel's buffers took


async def test_tiny_chunks_are_bounded_too():
    async def handler(visit):
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await visit.send(b"1\r\na\r\n" * 1000)

    started = time.monotonic()
    answer, _ = await exchange(handler, timeout_s=20)
    assert answer == Reply(200, b"a" * 4096)
    assert time.monotonic() - started < 3


async def test_many_tiny_chunks_within_the_budget_are_read_to_their_end():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 11_000 + b"0\r\n\r\n"
    answer, receiver = await exchange(answering(chunked), times=2)
    assert answer == Reply(200, b"a" * 4096)
    assert receiver.connections == 1


async def test_a_large_part_of_a_response_may_be_kept():
    async with (
        receiving(answering(response("200 OK", body=b"a" * 2_000_000))) as receiver,
        sender(response_bytes_max=2_000_000) as sending,
    ):
        for _ in range(2):
            assert await post_to(sending, f"http://127.0.0.1:{receiver.port}/") == Reply(
                200, b"a" * 2_000_000
            )
    assert receiver.connections == 1


# No answer


async def test_a_flood_of_informational_responses_is_stopped():
    async def handler(visit):
        await visit.request()
        while True:
            await visit.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)

    cpu, started = time.process_time(), time.monotonic()
    answer, _ = await exchange(handler, timeout_s=20)
    assert answer == unreachable("too_much_response")
    assert time.monotonic() - started < 2
    assert time.process_time() - cpu < 1


@pytest.mark.parametrize("piece", [b"X-A: " + b"b" * 1000 + b"\r\n", b"b" * 4096])
async def test_an_endless_head_is_stopped(piece):
    async def handler(visit):
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nX-First: ")
        while True:
            await visit.send(piece)

    answer, _ = await exchange(handler, timeout_s=20)
    assert answer in {unreachable("too_much_response"), unreachable("bad_response")}


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"<html>an HTTP/0.9 answer</html>",
        b"\x15\x03\x01\x00\x02\x02\x16",  # a TLS alert
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80\x00\x04\x00\x01\x00\x00",  # HTTP/2 settings
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 -1 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x00\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n",
        b"ICY 200 OK\r\n\r\n",
    ],
)
async def test_invalid_http_responses(data):
    answer, _ = await exchange(raw(data), timeout_s=0.3)
    if PURE_PYTHON in os.environ and b"\r\n" not in data:  # that parser waits for the end of the line
        assert answer == Fault(Outcome.TIMEOUT, "response")
    else:
        assert answer == unreachable("bad_response")


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 103 E\r\n\r\n"]
)
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_connection_that_ends_before_the_head_is_complete(data, then):
    answer, receiver = await exchange(raw(data, then=then))
    assert answer == unreachable("reset")
    assert receiver.connections == 1


async def test_a_receiver_that_never_answers():
    started = time.monotonic()
    answer, receiver = await exchange(raw(b""), timeout_s=0.3)
    assert answer == Fault(Outcome.TIMEOUT, "response")
    assert 0.3 <= time.monotonic() - started < 1.2
    await asyncio.wait_for(receiver.left.wait(), 2)


async def test_a_receiver_that_takes_nothing():
    async def handler(visit):
        await asyncio.sleep(30)

    started = time.monotonic()
    answer, receiver = await exchange(handler, timeout_s=0.3, body=b"x" * 8_000_000)
    assert answer == Fault(Outcome.TIMEOUT, "response")
    assert time.monotonic() - started < 1.5
    assert receiver.connections == 1


async def test_one_that_trickles_its_head_is_timed_out():
    async def handler(visit):
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await visit.send(b"a")
            await asyncio.sleep(0.02)

    answer, _ = await exchange(handler, timeout_s=0.3)
    assert answer == Fault(Outcome.TIMEOUT, "response")


async def test_an_answer_before_the_request_was_taken():
    async def handler(visit):
        await visit.reader.readuntil(b"\r\n\r\n")
        await visit.send(OK)
        await asyncio.sleep(30)

    answer, receiver = await exchange(handler, times=2, body=b"x" * 8_000_000)
    assert answer == Reply(200, b"ok")
    assert receiver.connections == 2  # the first was not kept: its request was still going out


async def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with sender() as sending:
        assert await post_to(sending, f"http://127.0.0.1:{port}/") == unreachable("refused")


async def test_cancellation_goes_through_and_frees_the_connection():
    asked = asyncio.Event()

    async def handler(visit):
        await visit.request()
        asked.set()
        await visit.gone()

    async with receiving(handler) as receiver, sender(connections_max=1) as sending:
        task = asyncio.create_task(post_to(sending, f"http://127.0.0.1:{receiver.port}/", timeout_s=30))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(receiver.left.wait(), 2)
        receiver.handler = answering(OK)
        assert await post_to(sending, f"http://127.0.0.1:{receiver.port}/") == Reply(200, b"ok")


async def test_cancellation_while_connecting_goes_through():
    async with receiving(raw(b"")) as receiver, sender() as sending:
        task = asyncio.create_task(post_to(sending, f"https://127.0.0.1:{receiver.port}/", timeout_s=30))
        while not receiver.connections:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_timeout_does_not_leave_the_task_cancelled():
    async with receiving(raw(b"")) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/", timeout_s=0.1)
        task = asyncio.current_task()
        assert answer.outcome is Outcome.TIMEOUT
        assert task is not None
        assert not task.cancelling()


# Keeping connections


async def test_connections_are_kept_and_parsers_with_them():
    answers = (
        OK,
        b"HTTP/1.1 103 Early\r\n\r\n" + response("204 No Content"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
        response("500 No", body=b"x" * 60_000),
        response("304 Not Modified"),
        OK,
    )
    async with receiving(answering(*answers)) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        got = [await post_to(sending, url) for _ in range(8)]
    assert [answer.status for answer in got] == [200, 204, 200, 500, 304, 200, 200, 200]
    assert [answer.body[:5] for answer in got] == [b"ok", b"", b"abc", b"xxxxx", b"", b"ok", b"ok", b"ok"]
    assert receiver.connections == 1


async def test_a_kept_connection_that_dies_at_the_next_request_is_stale():
    async def handler(visit):
        await visit.request()
        await visit.send(OK)
        await visit.request()

    answer, receiver = await exchange(handler, times=2)
    assert answer == unreachable("stale_connection")
    assert receiver.connections == 1


async def test_a_kept_connection_that_dies_in_the_head_is_reset():
    async def handler(visit):
        await visit.request()
        await visit.send(OK)
        await visit.request()
        await visit.send(b"HTTP/1.1 2")

    answer, _ = await exchange(handler, times=2)
    assert answer == unreachable("reset")


async def test_a_connection_closed_while_idle_is_not_used():
    async def handler(visit):
        await visit.request()
        await visit.send(OK)

    async with receiving(handler) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        assert await post_to(sending, url) == Reply(200, b"ok")
        await receiver.left.wait()
        while sending._wires:
            await asyncio.sleep(0.005)
        assert await post_to(sending, url) == Reply(200, b"ok")
    assert receiver.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        response("200 OK", "Connection: close", body=b"ok"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 2",  # the beginning of an answer nobody asked for
        OK + b"H",
        OK + response("200 OK", body=b"smuggled"),
    ],
)
async def test_connections_that_must_not_be_kept(answer):
    async with receiving(answering(answer)) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        for _ in range(3):
            assert await post_to(sending, url) == Reply(200, b"ok")
    assert receiver.connections == 3


async def test_an_answer_nobody_asked_for_ends_the_idle_connection():
    push = asyncio.Event()

    async def handler(visit):
        await visit.request()
        await visit.send(OK)
        await push.wait()
        await visit.send(response("200 OK", body=b"smuggled"))
        await visit.gone()

    async with receiving(handler) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        assert await post_to(sending, url) == Reply(200, b"ok")
        push.set()
        await asyncio.wait_for(receiver.left.wait(), 2)
        receiver.handler = answering(response("500 Real"))
        assert await post_to(sending, url) == Reply(500)


async def test_open_connections_are_bounded():
    async with sender(connections_max=2) as sending:
        for _ in range(8):
            async with receiving(answering(OK)) as receiver:
                assert isinstance(await post_to(sending, f"http://127.0.0.1:{receiver.port}/"), Reply)
                assert len(sending._wires) <= 5


async def test_many_at_once_share_few_connections():
    async with receiving(answering(OK)) as receiver, sender(connections_max=4) as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        got = await asyncio.gather(*(post_to(sending, url) for _ in range(100)))
    assert set(got) == {Reply(200, b"ok")}
    assert receiver.connections <= 4


async def test_a_kept_connection_is_taken_without_giving_up_the_loop():
    async with receiving(answering(OK)) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        await post_to(sending, url)
        with pytest.raises(StopIteration) as got:
            sending._connect(sending.target_of(url), 5.0).send(None)
        got.value.value.close()


async def test_a_kept_connection_is_not_kept_for_ever():
    async with receiving(answering(OK)) as receiver, sender() as sending:
        await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
        assert sending._connector._keepalive_timeout == KEEPALIVE_S < 5
        assert len(sending._wires) == 1


async def test_leaving_ends_requests_in_flight():
    async with receiving(raw(b"")) as receiver:
        async with sender() as sending:
            task = asyncio.create_task(post_to(sending, f"http://127.0.0.1:{receiver.port}/"))
            while not receiver.connections:
                await asyncio.sleep(0.005)
        assert await asyncio.wait_for(task, 2) == unreachable("reset")
        assert not sending._wires


@pytest.mark.parametrize("seed", range(4))
async def test_mutilated_responses_never_surprise(seed):
    random = Random(seed)
    whole = (
        OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nWebhook-Delivery: disable\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 103 E\r\n\r\n" + response("429 Slow", "Retry-After: 1", "Location: /x", body=b"later"),
    )

    async def handler(visit):
        await visit.request()
        await visit.send(mutilated(random, random.choice(whole)))

    async with receiving(handler) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        got = [await post_to(sending, url, timeout_s=2) for _ in range(250)]
    assert {answer.outcome for answer in got if isinstance(answer, Fault)} <= {Outcome.UNREACHABLE}
    assert any(isinstance(answer, Reply) for answer in got)
    assert any(isinstance(answer, Fault) for answer in got)


def mutilated(random, data):
    """Change, cut, double or insert some bytes."""
    mutable = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(mutable) + 1)
        mutable[at : at + random.choice([0, 1, 1, 8])] = random.choice(
            [b"", b"\x00", b"\r\n", b"\n", b":", random.randbytes(3), bytes(mutable[at : at + 20]), b"9" * 20]
        )
    return bytes(mutable)


# Gates


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:99999/", "port"),
        ("ftp://127.0.0.1/", "scheme"),
        ("http://a@127.0.0.1/", "userinfo"),
        ("http://10.0.0.1/", "literal"),
        ("http://localhost/", "name"),
        ("not a url", "url"),
    ],
)
def test_a_url_that_is_refused(url, name):
    assert sender().target_of(url) == Fault(Outcome.BLOCKED, name)


def test_a_target_hides_the_path():
    assert "token" not in repr(sender().target_of("https://example.com/token"))


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["127.0.0.1", "::1"], ["::1"], ["127.0.0.1", "127.0.0.2"]]
)
async def test_the_socket_guard_works_alone(addresses):
    async with receiving(answering(OK)) as receiver:
        async with sender(policy=EgressPolicy(), resolver=Liar(*addresses)) as sending:
            answer = await post_to(sending, f"http://rebind.example.com:{receiver.port}/")
        assert answer == Fault(Outcome.BLOCKED, "address")
        assert receiver.connections == 0


async def test_a_name_opened_by_the_operator_passes_all_gates():
    policy = EgressPolicy(allow=parse_places(["localhost"]))
    async with receiving(answering(OK)) as receiver, sender(policy=policy) as sending:
        assert await post_to(sending, f"http://localhost:{receiver.port}/") == Reply(200, b"ok")
        assert sending.target_of(f"http://127.0.0.1:{receiver.port}/") == Fault(Outcome.BLOCKED, "literal")


async def test_a_mixed_answer_is_refused_although_one_address_is_good():
    table = {"mixed.example.com": ["127.0.0.1", "10.0.0.1"], "good.example.com": ["127.0.0.1"]}
    async with naming(table) as (server, _), receiving(answering(OK)) as receiver:
        resolver = GuardedResolver(LOOPBACK, nameservers=[server])
        async with sender(resolver=resolver) as sending:
            good = await post_to(sending, f"http://good.example.com:{receiver.port}/")
            mixed = await post_to(sending, f"http://mixed.example.com:{receiver.port}/")
            gone = await post_to(sending, f"http://gone.example.com:{receiver.port}/")
        await resolver.close()
    assert good == Reply(200, b"ok")
    assert mixed == Fault(Outcome.BLOCKED, "address")
    assert gone == unreachable("dns")
    assert receiver.connections == 1


async def test_environment_proxies_do_not_apply(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    answer, _ = await exchange(answering(OK))
    assert answer == Reply(200, b"ok")


@pytest.mark.parametrize(
    ("exc", "fault"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), unreachable("refused")),
        (OSError("Multiple exceptions: [Errno 101] a, [Errno 111] b"), unreachable("refused")),
        (OSError("Multiple exceptions: [Errno 101] a, [Errno 113] b"), unreachable("no_route")),
        (OSError(errno.ENETUNREACH, "x"), unreachable("no_route")),
        (OSError(errno.EPERM, "x"), Fault(Outcome.BLOCKED, "address")),
        (OSError(errno.EMFILE, "x"), Fault(Outcome.FAILED, "EMFILE")),
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 24] b"), Fault(Outcome.FAILED, "EMFILE")),
        (
            OSError(f"Multiple exceptions: [Errno 111] a, {AddressRefused(Refusal('address', ''))}"),
            Fault(Outcome.BLOCKED, "address"),
        ),
        (OSError("http://secret"), Fault(Outcome.FAILED, "OSError")),
        (ConnectionAbortedError(), unreachable("reset")),
    ],
)
def test_errors_of_the_system_have_names(exc, fault):
    assert _os_fault(exc) == fault


async def test_what_nobody_foresaw_is_our_own_fault_and_says_no_secret():
    class Broken(Liar):
        async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
            raise LookupError(f"http://{host}/token")

    async with sender(policy=EgressPolicy(), resolver=Broken()) as sending:
        answer = await post_to(sending, "http://a.example.com/token")
    assert answer == Fault(Outcome.FAILED, "LookupError")


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def tls_exchange(context, *, ca_file, scheme="https", times=1):
    async with receiving(answering(OK), tls=context) as receiver, sender(ca_file=ca_file) as sending:
        for _ in range(times):
            answer = await post_to(sending, f"{scheme}://127.0.0.1:{receiver.port}/")
        connections = receiver.connections
    return answer, connections


async def test_tls_with_a_ca_file_of_the_operator(authority):
    context = authority.server_context("good", "IP:127.0.0.1")
    assert await tls_exchange(context, ca_file=str(authority.ca_file), times=3) == (Reply(200, b"ok"), 1)


async def test_tls_with_a_name(authority):
    context = authority.server_context("named", "DNS:localhost")
    policy = EgressPolicy(allow=parse_places(["localhost"]))
    async with (
        receiving(answering(OK), tls=context) as receiver,
        sender(ca_file=str(authority.ca_file), policy=policy) as sending,
    ):
        assert await post_to(sending, f"https://localhost:{receiver.port}/") == Reply(200, b"ok")


async def test_tls_untrusted(authority):
    context = authority.server_context("untrusted", "IP:127.0.0.1")
    answer, _ = await tls_exchange(context, ca_file=None)
    assert answer == unreachable("tls_untrusted")


async def test_tls_expired(authority):
    context = authority.server_context("expired", "IP:127.0.0.1", expired=True)
    answer, _ = await tls_exchange(context, ca_file=str(authority.ca_file))
    assert answer == unreachable("tls_expired")


@pytest.mark.parametrize("names", ["DNS:other.example.com", "IP:127.0.0.2"])
async def test_tls_for_somebody_else(authority, names):
    context = authority.server_context("other" + names[:2], names)
    answer, _ = await tls_exchange(context, ca_file=str(authority.ca_file))
    assert answer == unreachable("tls_name")


async def test_tls_of_old_is_not_spoken(authority):
    context = authority.server_context("old", "IP:127.0.0.1")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    answer, _ = await tls_exchange(context, ca_file=str(authority.ca_file))
    assert answer in {unreachable("tls"), unreachable("reset")}


async def test_tls_that_wants_a_certificate_of_ours(authority):
    context = authority.server_context("mutual", "IP:127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    answer, _ = await tls_exchange(context, ca_file=str(authority.ca_file))
    assert answer in {unreachable("tls"), unreachable("reset")}


async def test_plain_http_where_tls_is_expected_and_the_reverse(authority):

    async def plain(visit):
        await visit.reader.read(1)
        await visit.send(response("400 This is no TLS"))
        await visit.gone()

    async with receiving(plain) as receiver, sender() as sending:
        assert await post_to(sending, f"https://127.0.0.1:{receiver.port}/") == unreachable("tls")
    context = authority.server_context("reverse", "IP:127.0.0.1")
    answer, _ = await tls_exchange(context, ca_file=None, scheme="http")
    assert answer in {unreachable("bad_response"), unreachable("reset")}


async def test_a_handshake_that_stalls():
    async def handler(visit):
        await asyncio.sleep(30)

    async with receiving(handler) as receiver, sender(connect_timeout_s=0.3) as sending:
        started = time.monotonic()
        answer = await post_to(sending, f"https://127.0.0.1:{receiver.port}/")
    assert answer == Fault(Outcome.TIMEOUT, "connect")
    assert time.monotonic() - started < 1


async def test_the_deadline_holds_while_connecting_too():
    async def handler(visit):
        await asyncio.sleep(30)

    async with receiving(handler) as receiver, sender() as sending:
        started = time.monotonic()
        answer = await post_to(sending, f"https://127.0.0.1:{receiver.port}/", timeout_s=0.3)
    assert answer == Fault(Outcome.TIMEOUT, "connect")
    assert time.monotonic() - started < 1


def test_the_trust_is_strict(tmp_path):
    context = trust()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ssl.SSLError):
        trust(str(tmp_path / "empty.pem"))
    with pytest.raises(FileNotFoundError):
        trust(str(tmp_path / "none.pem"))


# aiohttp's other parser


@pytest.mark.slow
@pytest.mark.skipif(PURE_PYTHON in os.environ, reason="this is that run")
def test_all_of_this_holds_without_the_c_extension():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-m",
            "",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "not tls",
            __file__,
        ],
        env={**os.environ, PURE_PYTHON: "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# Receivers that serve one connection at a time


class OneAtATime(http.server.HTTPServer):
    """Serves one connection until it ends, as single-threaded servers do."""

    allow_reuse_address = True


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Send nothing."""


async def test_a_receiver_that_serves_one_connection_at_a_time_answers_all():
    with OneAtATime(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            async with sender() as sending:
                began = time.monotonic()
                url = f"http://127.0.0.1:{server.server_port}/"
                answers = await asyncio.gather(*(post_to(sending, url) for _ in range(4)))
                assert [answer.status for answer in answers] == [200] * 4
                assert time.monotonic() - began < 4 * (SWEEP_S + CROWDED_S) + 1
        finally:
            server.shutdown()
            thread.join()
