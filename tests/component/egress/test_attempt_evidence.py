"""The evidence of failed attempts, one for each place at which a request can end; successes have none."""

from __future__ import annotations

import json
import socket

import pytest

from pghookd.egress.resolver import GuardedResolver
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, parse_places, parse_proxy
from support.fault_server import Certificates, Liar, naming, receiving
from support.proxy_server import forwarding

POLICY = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))
LOCAL_NAME = {
    "resolver": Liar("127.0.0.1"),
    "policy": EgressPolicy(allow=parse_places(["127.0.0.0/8", "a.example.com"])),
}
BODY = b'{"id":"evt_1"}'
HEAD = b"content-type: application/json\r\nauthorization: Bearer b34rer\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BROKEN = (
    b"HTTP/1.1 500 Oh\r\nServer: nginx\r\nSet-Cookie: sid=1\r\nX-Echo: b34rer\r\nContent-Type: text/plain\r\n"
    b"Via: a\r\nVia: b\r\nContent-Length: 2\r\n\r\nno"
)


def sender(**changes):
    settings = {
        "policy": POLICY,
        "connections_max": 8,
        "connect_timeout_s": 2.0,
        "response_bytes_max": 4096,
        **changes,
    }
    return Sender(**settings)


async def post_to(sending, url, *, timeout_s=5.0, body=BODY, **options):
    target = sending.target_of(url, **options)
    head = HEAD.replace(b"%d" % len(BODY), b"%d" % len(body))
    return await sending.post(target, head, body, timeout_s)


def told(answer):
    """Return the evidence of an answer without its times, which must not go back, and the phases that have one."""
    evidence = json.loads(answer.evidence)
    times = list(evidence.pop("ms").items())
    assert [ms for _, ms in times] == sorted(ms for _, ms in times)
    assert all(0 <= ms < 10_000 for _, ms in times)
    return evidence, [phase for phase, _ in times]


def answering_with(*answers, then="wait"):
    """Answer each request of a connection, then wait for its end or cause it."""

    async def handler(visit):
        for answer in answers:
            await visit.request()
            await visit.send(answer)
        if then == "wait":
            await visit.gone()
        elif then == "reset":
            await visit.request()
            visit.reset()

    return handler


@pytest.fixture
def home(tmp_path):
    return Certificates(tmp_path)


async def test_a_success_has_none():
    async with receiving(answering_with(OK, OK)) as receiver, sender() as sending:
        for _ in range(2):
            answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
            assert (answer, answer.evidence) == (Reply(200, b"ok"), None)


async def test_a_2xx_that_the_endpoint_does_not_list_has_evidence():
    async with receiving(answering_with(OK, OK)) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        answer = await post_to(sending, url, successes=frozenset({204}))
        evidence, phases = told(answer)
        assert (await post_to(sending, url, successes=frozenset({200}))).evidence is None
    assert (evidence["reached"], phases) == ("body", ["dns", "connect", "sent", "headers", "body"])


async def test_a_name_that_does_not_resolve():
    async with (
        naming({}) as (nameserver, _),
        sender(resolver=GuardedResolver(POLICY, nameservers=[nameserver])) as sending,
    ):
        answer = await post_to(sending, "http://nowhere.example.com/")
    assert answer == Fault(Outcome.UNREACHABLE, "dns")
    assert told(answer) == ({"reached": None}, [])


async def test_a_refused_address_is_not_shown():
    for resolver in (Liar("10.0.0.1"), Liar("127.0.0.1", "10.0.0.1")):
        async with sender(resolver=resolver) as sending:
            answer = await post_to(sending, "http://inside.example.com/")
        assert answer == Fault(Outcome.BLOCKED, "address")
        assert "10.0.0.1" not in answer.evidence
        assert told(answer)[1] == ["dns"]


async def test_a_refused_connection(unused_tcp_port):
    async with sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{unused_tcp_port}/")
    assert answer == Fault(Outcome.UNREACHABLE, "refused")
    assert told(answer) == ({"address": f"127.0.0.1:{unused_tcp_port}", "reached": "dns"}, ["dns"])


async def test_a_connection_that_nobody_accepts():
    """The queue of a listener that never accepts is full: SYNs are dropped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), socket.socket() as second:
            second.settimeout(0)
            second.connect_ex(("127.0.0.1", port))
            async with sender(connect_timeout_s=0.3) as sending:
                answer = await post_to(sending, f"http://127.0.0.1:{port}/")
    assert answer == Fault(Outcome.TIMEOUT, "connect")
    assert told(answer) == ({"address": f"127.0.0.1:{port}", "reached": "dns"}, ["dns"])


async def test_a_certificate_that_is_not_trusted(home):
    context = home.server_context("other", "DNS:a.example.com", self_signed=True)
    async with receiving(answering_with(OK), tls=context) as receiver, sender(**LOCAL_NAME) as sending:
        answer = await post_to(sending, f"https://a.example.com:{receiver.port}/")
    assert answer == Fault(Outcome.UNREACHABLE, "tls_untrusted")
    assert told(answer) == (
        {"address": f"127.0.0.1:{receiver.port}", "reached": "connect"},
        ["dns", "connect"],
    )


async def test_all_phases_over_tls(home):
    context = home.server_context("good", "DNS:a.example.com")
    async with (
        receiving(answering_with(BROKEN), tls=context) as receiver,
        sender(**LOCAL_NAME, ca_file=str(home.ca_file)) as sending,
    ):
        answer = await post_to(sending, f"https://a.example.com:{receiver.port}/")
    assert answer.status == 500
    evidence, phases = told(answer)
    assert (evidence["address"], evidence["reached"]) == (f"127.0.0.1:{receiver.port}", "body")
    assert phases == ["dns", "connect", "tls", "sent", "headers", "body"]


async def test_the_address_is_the_one_that_answered_of_several():
    resolver = Liar("127.0.0.2", "127.0.0.1")
    async with (
        receiving(answering_with(BROKEN)) as receiver,
        sender(**LOCAL_NAME | {"resolver": resolver}) as sending,
    ):
        answer = await post_to(sending, f"http://a.example.com:{receiver.port}/")
    assert told(answer)[0]["address"] == f"127.0.0.1:{receiver.port}"


async def test_a_receiver_that_accepts_and_is_silent():
    async with receiving(lambda visit: visit.gone()) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/", timeout_s=0.3)
    assert answer == Fault(Outcome.TIMEOUT, "response")
    assert told(answer) == (
        {"address": f"127.0.0.1:{receiver.port}", "reached": "sent"},
        ["dns", "connect", "sent"],
    )


async def test_a_request_that_is_never_read_is_not_sent():
    async def handler(visit):
        visit.writer.transport.pause_reading()
        await visit.writer.wait_closed()

    async with receiving(handler) as receiver, sender() as sending:
        answer = await post_to(
            sending, f"http://127.0.0.1:{receiver.port}/", timeout_s=0.3, body=b" " * 20_000_000
        )
    assert answer == Fault(Outcome.TIMEOUT, "response")
    assert told(answer)[1] == ["dns", "connect"]


async def test_headers_and_then_a_body_that_never_ends():
    async with receiving(answering_with(BROKEN[:-1])) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/", timeout_s=0.4)
    assert answer == Reply(500, b"n")
    evidence, phases = told(answer)
    assert (evidence["reached"], phases) == ("headers", ["dns", "connect", "sent", "headers"])
    assert json.loads(answer.evidence)["ms"]["headers"] < 300


async def test_headers_are_kept_without_cookies_and_credentials():
    async with receiving(answering_with(BROKEN)) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
    evidence, _ = told(answer)
    assert evidence["headers"] == {
        "server": "nginx",
        "content-type": "text/plain",
        "via": "a, b",
        "content-length": "2",
    }
    assert evidence["headers_left_out"] == 2


async def test_a_secret_of_the_endpoint_is_in_no_header():
    async with receiving(answering_with(BROKEN)) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/", secrets=("nginx",))
    assert "nginx" not in answer.evidence
    assert told(answer)[0]["headers_left_out"] == 3


async def test_a_body_that_cannot_be_parsed_leaves_the_headers():
    data = b"HTTP/1.1 503 No\r\nServer: odd\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    async with receiving(answering_with(data)) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
    assert answer == Reply(503)
    evidence, phases = told(answer)
    assert evidence["headers"] == {"server": "odd", "transfer-encoding": "chunked"}
    assert phases[-1] == "headers"


async def test_no_http_at_all():
    async with receiving(answering_with(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as receiver, sender() as sending:
        answer = await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
    assert answer == Fault(Outcome.UNREACHABLE, "bad_response")
    assert told(answer)[1] == ["dns", "connect", "sent"]


@pytest.mark.parametrize("second", [BROKEN, b""])
async def test_a_reused_connection_says_so(second):
    """The second request is answered, or the connection is reset: its address is known in both cases."""
    handler = answering_with(OK, BROKEN) if second else answering_with(OK, then="reset")
    async with receiving(handler) as receiver, sender() as sending:
        url = f"http://127.0.0.1:{receiver.port}/"
        assert (await post_to(sending, url)).evidence is None
        answer = await post_to(sending, url)
    evidence, phases = told(answer)
    assert (evidence["address"], evidence["reused"]) == (f"127.0.0.1:{receiver.port}", True)
    assert phases == (["sent", "headers", "body"] if second else ["sent"])


async def test_a_failure_after_a_success_in_one_task_has_its_own_evidence(unused_tcp_port):
    async with receiving(answering_with(OK)) as receiver, sender() as sending:
        await post_to(sending, f"http://127.0.0.1:{receiver.port}/")
        answer = await post_to(sending, f"http://127.0.0.1:{unused_tcp_port}/")
        assert told(answer)[0]["address"] == f"127.0.0.1:{unused_tcp_port}"
        assert told(await post_to(sending, f"http://127.0.0.1:{unused_tcp_port}/")) == told(answer)


# Through a proxy


def through(port, **changes):
    return sender(
        proxy=parse_proxy(f"http://127.0.0.1:{port}"),
        resolver=Liar("203.0.113.9"),
        policy=EgressPolicy(allow=parse_places(["203.0.113.0/24"])),
        **changes,
    )


async def test_with_a_proxy_the_address_is_that_of_the_proxy():
    async with (
        receiving(answering_with(BROKEN)) as receiver,
        forwarding(leads={"203.0.113.9:80": receiver.port}) as proxy,
        through(proxy.port) as sending,
    ):
        answer = await post_to(sending, "http://a.example.com/")
    evidence, phases = told(answer)
    assert (evidence["address"], evidence["via"]) == (f"127.0.0.1:{proxy.port}", "proxy")
    assert phases == ["dns", "connect", "sent", "headers", "body"]


async def test_a_tunnel_that_is_refused(unused_tcp_port):
    async with forwarding(lambda _where: b"HTTP/1.1 403 No\r\n\r\n") as proxy, through(proxy.port) as sending:
        answer = await post_to(sending, "http://a.example.com/")
    assert answer == Fault(Outcome.FAILED, "proxy: 403")
    expected = {"via": "proxy", "reached": "dns"}
    assert told(answer) == ({"address": f"127.0.0.1:{proxy.port}", **expected}, ["dns"])
    async with through(unused_tcp_port) as sending:
        answer = await post_to(sending, "http://a.example.com/")
    assert answer == Fault(Outcome.FAILED, "proxy: ECONNREFUSED")
    assert told(answer) == ({"address": f"127.0.0.1:{unused_tcp_port}", **expected}, ["dns"])
