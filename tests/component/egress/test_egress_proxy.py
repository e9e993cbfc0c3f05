"""Requests through the operator's proxy: what it gets, what it can learn, and whose fault its failures are."""

# ruff: noqa: ASYNC110 -- what these wait for has no event of its own
import asyncio
import contextlib
import socket
import time

import pytest

from pghookd.egress.resolver import GuardedResolver
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, Proxy, parse_places, parse_proxy
from support.fault_server import Certificates, Liar, answering, naming, receiving
from support.proxy_server import STALL, forwarding

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = b'{"id":"evt_1"}'
HEAD = b"content-length: 14\r\n\r\n"
PUBLIC, PUBLIC_V6 = "93.184.216.34", "2606:2800:220:1::248"


@contextlib.asynccontextmanager
async def sending(
    proxy, table=None, *, policy=None, connect_timeout_s=2.0, authorization="", tls=False, ca_file=None
):
    """A sender behind a proxy, with a name server of its own; `proxy` is one, or a port."""
    port = proxy if isinstance(proxy, int) else proxy.port
    policy = policy or EgressPolicy()
    async with naming(table or {}) as (server, _):
        resolver = GuardedResolver(policy, nameservers=[server])
        sender = Sender(
            policy=policy,
            connections_max=8,
            connect_timeout_s=connect_timeout_s,
            response_bytes_max=4096,
            resolver=resolver,
            ca_file=ca_file,
            proxy=Proxy("127.0.0.1", port, tls, authorization),
        )
        async with sender:
            yield sender
        await resolver.close()


async def post(sender, url, timeout_s=5.0):
    target = sender.target_of(url)
    return target if isinstance(target, Fault) else await sender.post(target, HEAD, BODY, timeout_s)


def failed(detail):
    return Fault(Outcome.FAILED, f"proxy: {detail}")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_the_proxy_gets_the_checked_address_and_the_same_request():
    seen = []

    async def handler(visit):
        while True:
            seen.append(await visit.request())
            await visit.send(OK)

    async with (
        receiving(handler) as receiver,
        forwarding(leads={f"{PUBLIC}:80": receiver.port}) as proxy,
        sending(proxy, {"a.example.com": [PUBLIC]}, authorization="Basic c2VjcmV0") as sender,
    ):
        answers = [await post(sender, "http://a.example.com/in?x=1") for _ in range(3)]
    assert answers == [Reply(200, b"ok")] * 3
    (asked,) = proxy.heads  # once: the tunnel is kept
    assert asked == (
        b"CONNECT 93.184.216.34:80 HTTP/1.1\r\nhost: 93.184.216.34:80\r\n"
        b"proxy-authorization: Basic c2VjcmV0\r\n\r\n"
    )
    assert seen == [(b"POST /in?x=1 HTTP/1.1\r\nhost: a.example.com\r\n" + HEAD, BODY)] * 3


async def test_tls_goes_through_the_tunnel_and_is_verified_by_the_name(authority):
    good = authority.server_context("good", "DNS:a.example.com")
    async with receiving(answering(OK), tls=good) as receiver:
        leads = dict.fromkeys((f"{PUBLIC}:443", f"[{PUBLIC_V6}]:8443"), receiver.port)
        table = {"a.example.com": [PUBLIC], "b.example.com": [PUBLIC], "six.example.com": [PUBLIC_V6]}
        async with (
            forwarding(leads=leads) as proxy,
            sending(proxy, table, ca_file=str(authority.ca_file)) as sender,
        ):
            urls = ("https://a.example.com/", "https://b.example.com/", "https://six.example.com:8443/")
            answers = [await post(sender, url) for url in (urls[0], *urls)]
        async with forwarding(leads=leads) as other, sending(other, table) as sender:
            answers.append(await post(sender, urls[0]))
    wrong = Fault(Outcome.UNREACHABLE, "tls_name")
    assert answers == [
        Reply(200, b"ok"),
        Reply(200, b"ok"),
        wrong,
        wrong,
        Fault(Outcome.UNREACHABLE, "tls_untrusted"),
    ]
    assert proxy.asked == [f"{PUBLIC}:443", f"{PUBLIC}:443", f"[{PUBLIC_V6}]:8443"]


async def test_a_proxy_that_speaks_tls_itself(authority):
    async with receiving(
        answering(OK), tls=authority.server_context("inner", "DNS:a.example.com")
    ) as receiver:
        context = authority.server_context("proxy", "IP:127.0.0.1")
        table = {"a.example.com": [PUBLIC]}
        async with forwarding(leads={f"{PUBLIC}:443": receiver.port}, tls=context) as proxy:
            async with sending(proxy, table, tls=True, ca_file=str(authority.ca_file)) as sender:
                assert await post(sender, "https://a.example.com/") == Reply(200, b"ok")
            async with sending(proxy, table, tls=True) as sender:
                assert await post(sender, "https://a.example.com/") == failed("tls")


async def test_what_is_refused_is_refused_before_the_proxy_hears_of_it():
    table = {
        "inner.example.com": ["10.0.0.1"],
        "mixed.example.com": [PUBLIC, "::1"],
        "meta.example.com": ["169.254.169.254"],
        "gone.example.com": [],
    }
    tried = {
        "http://127.0.0.1/": "literal",
        "http://localhost/": "name",
        "http://a.example.com:22/": "port",
        "http://inner.example.com/": "address",
        "http://mixed.example.com/": "address",
        "https://meta.example.com/": "address",
    }
    async with forwarding() as proxy, sending(proxy, table) as sender:
        answers = {url: await post(sender, url) for url in tried}
        assert await post(sender, "http://gone.example.com/") == Fault(Outcome.UNREACHABLE, "dns")
    assert answers == {url: Fault(Outcome.BLOCKED, name) for url, name in tried.items()}
    assert proxy.heads == []


async def test_the_gate_before_the_proxy_works_alone():
    async with forwarding() as proxy:
        for addresses in (["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:7f00:1"]):
            sender = Sender(
                policy=EgressPolicy(), connections_max=2, connect_timeout_s=2.0, response_bytes_max=9,
                resolver=Liar(*addresses), proxy=Proxy("127.0.0.1", proxy.port),
            )  # fmt: skip
            async with sender:
                assert await post(sender, "http://a.example.com/") == Fault(Outcome.BLOCKED, "address")
        assert proxy.heads == []


async def test_a_name_that_turns_inward_gains_nothing():
    table = {"turn.example.com": [PUBLIC]}
    async with (
        receiving(answering(OK)) as receiver,
        forwarding(leads={f"{PUBLIC}:80": receiver.port}) as proxy,
        naming(table) as (server, names),
    ):
        names.ttl_s = 0
        resolver = GuardedResolver(EgressPolicy(), nameservers=[server])
        sender = Sender(
            policy=EgressPolicy(), connections_max=2, connect_timeout_s=2.0, response_bytes_max=9,
            resolver=resolver, proxy=Proxy("127.0.0.1", proxy.port),
        )  # fmt: skip
        async with sender:
            first = await post(sender, "http://turn.example.com/")
            table["turn.example.com"] = ["127.0.0.1"]
        async with sender:  # a new connection: nothing is kept, and nothing known
            second = await post(sender, "http://turn.example.com/")
        await resolver.close()
    assert (first, second) == (Reply(200, b"ok"), Fault(Outcome.BLOCKED, "address"))
    assert proxy.asked == [f"{PUBLIC}:80"]


THEIRS = Fault(Outcome.UNREACHABLE, "refused")
NO_ROUTE = Fault(Outcome.UNREACHABLE, "no_route")
CONNECT_ANSWERS = [
    (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", failed("407")),
    (b"HTTP/1.1 403 Forbidden\r\n\r\n", failed("403")),
    (b"HTTP/1.0 500 Oh\r\nContent-Length: 5\r\n\r\nhello", failed("500")),
    (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", failed("502")),
    (b"HTTP/1.1 503\r\n\r\n", failed("503")),
    (b"HTTP/1.1 301 Moved\r\nLocation: http://10.0.0.1/\r\n\r\n", failed("301")),
    (b"HTTP/1.1 100 Continue\r\n\r\n", failed("100")),
    (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", failed("bad_response")),
    (b"HTTP/2 200\r\n\r\n", failed("bad_response")),
    (b"hello\r\n\r\n", failed("bad_response")),
    (b"\x00" * 20_000, failed("bad_response")),
    (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, failed("bad_response")),
    (b"HTTP/1.1 200 OK\r\n", failed("reset")),
    (b"\r", failed("reset")),
    (b"HTTP/1.1 502 No\r\nProxy-Status: p; error=connection_refused\r\n\r\n", THEIRS),
    (b'HTTP/1.1 504 No\r\nproxy-status: p; error="connection_timeout"\r\n\r\n', Fault(Outcome.TIMEOUT, "connect")),
    (b"HTTP/1.1 502 No\r\nProxy-Status: a; error=connection_refused, b; error=x\r\n\r\n", failed("502")),
    (b"HTTP/1.1 502 \r\nProxy-Status: a; error=connection_refused\r\nProxy-Status: b; error=x\r\n\r\n", failed("502")),
    (b"HTTP/1.1 502 No\r\nProxy-Status: p; error=connection_limit_reached\r\n\r\n", failed("502")),
    (b"HTTP/1.1 403 No\r\nProxy-Status: p; error=destination_ip_prohibited\r\n\r\n", Fault(Outcome.BLOCKED, "address")),
    (b"HTTP/1.1 502 No\r\nProxy-Status: p; error=destination_ip_unroutable\r\n\r\n", NO_ROUTE),
    (b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n", THEIRS),
    (b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 110\r\n\r\n", Fault(Outcome.TIMEOUT, "connect")),
    (b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 24\r\n\r\n", failed("503")),
    (b"HTTP/1.1 403 No\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n", failed("403")),
]  # fmt: skip


async def test_only_proxy_errors_about_the_destination_count_against_it():
    got = []
    async with forwarding() as proxy, sending(proxy) as sender:
        for answer, _ in CONNECT_ANSWERS:
            proxy.manner = lambda _, answer=answer: answer
            got.append((answer, await post(sender, f"http://{PUBLIC}/")))
            assert len(sender._wires) == 0
    assert got == CONNECT_ANSWERS


async def test_a_proxy_that_is_away_is_our_own_trouble():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with sending(free.getsockname()[1]) as sender:
            assert await post(sender, f"https://{PUBLIC}/") == failed("ECONNREFUSED")


async def test_a_proxy_that_nobody_knows():
    sender = Sender(
        policy=EgressPolicy(),
        connections_max=2,
        connect_timeout_s=2.0,
        response_bytes_max=9,
        proxy=Proxy("a..b", 80),
    )
    async with sender:
        assert (await post(sender, f"https://{PUBLIC}/")).outcome is Outcome.FAILED


async def test_a_timeout_is_the_proxys_unless_it_opens_other_tunnels_meanwhile():
    slow, well = f"{PUBLIC}:80", "93.184.216.35:80"
    async with (
        receiving(answering(OK)) as receiver,
        forwarding({slow: STALL, well: None}.get, leads={well: receiver.port}) as proxy,
        sending(proxy, connect_timeout_s=0.3) as sender,
    ):
        started = time.monotonic()
        alone = await post(sender, f"http://{PUBLIC}/")
        assert 0.2 < time.monotonic() - started < 1
        waiting = asyncio.create_task(post(sender, f"http://{PUBLIC}/"))
        while len(proxy.heads) < 2:
            await asyncio.sleep(0.005)
        assert await post(sender, "http://93.184.216.35/") == Reply(200, b"ok")
        assert (alone, await waiting) == (failed("timeout"), Fault(Outcome.TIMEOUT, "connect"))


async def test_a_receiver_that_stalls_in_its_handshake_is_not_the_proxys_fault():
    async def silent(visit):
        await visit.gone()

    async with (
        receiving(silent) as receiver,
        forwarding(leads={f"{PUBLIC}:443": receiver.port}) as proxy,
        sending(proxy, connect_timeout_s=0.3) as sender,
    ):
        assert await post(sender, f"https://{PUBLIC}/") == Fault(Outcome.TIMEOUT, "connect")


async def test_each_address_is_tried_ipv4_first_and_not_for_ever():
    addresses = [PUBLIC_V6, *(f"93.184.216.{n}" for n in range(10))]
    no = b"HTTP/1.1 502 No\r\nProxy-Status: p; error=connection_refused\r\n\r\n"
    table = {"two.example.com": [PUBLIC_V6, PUBLIC], "many.example.com": addresses}
    manner = {f"[{PUBLIC_V6}]:80": None}
    async with (
        receiving(answering(OK)) as receiver,
        forwarding(lambda where: manner.get(where, no), leads=dict.fromkeys(manner, receiver.port)) as proxy,
        sending(proxy, table) as sender,
    ):
        assert await post(sender, "http://two.example.com/") == Reply(200, b"ok")
        assert proxy.asked == [f"{PUBLIC}:80", f"[{PUBLIC_V6}]:80"]
        assert await post(sender, "http://many.example.com/") == THEIRS
        assert len(proxy.asked) == 6


async def test_cancelling_leaves_nothing_open():
    async with forwarding(lambda _: STALL) as proxy, sending(proxy) as sender:
        task = asyncio.create_task(post(sender, f"http://{PUBLIC}/"))
        while not proxy.heads:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not sender._wires
        assert not sender._connector._acquired


def test_proxies_are_read_and_their_faults_quote_nothing():
    assert parse_proxy("http://proxy") == Proxy("proxy", 80)
    assert parse_proxy("https://[fd00::1]:8443/") == Proxy("fd00::1", 8443, is_tls=True)
    assert parse_proxy("http://u%40x:p%2f%3A@10.0.0.1:3128") == Proxy(
        "10.0.0.1", 3128, authorization="Basic dUB4OnAvOg=="
    )
    assert "dUB4" not in repr(parse_proxy("http://u%40x:p%2f%3A@10.0.0.1:3128"))
    for text in (
        "socks5://h:1", "http://", "http://hunter2:x@", "http://h/hunter2", "http://h:1?hunter2", "http://u:hun/ter2@h",
        "http://h:hunter2", "http://[hunter2]/", "hunter2:3128", "http://h:0", "http://h:99999", "http://h hunter2",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|cannot") as caught:
            parse_proxy(text)
        assert "hunter" not in str(caught.value)


def test_names_opened_for_customers_are_not_opened_by_being_the_proxy():
    policy = EgressPolicy(allow=parse_places(["hooks.corp"]))
    sender = Sender(
        policy=policy,
        connections_max=1,
        connect_timeout_s=1,
        response_bytes_max=1,
        proxy=Proxy("proxy.corp", 3128),
    )
    assert sender.target_of("http://proxy.corp:3128/") == Fault(Outcome.BLOCKED, "name")
