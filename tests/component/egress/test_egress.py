"""Egress as a whole: names that turn, redirects, addresses tried in turn, shared connections, TLS, hostile answers."""

# ruff: noqa: ARG002 -- resolvers have the arguments of their kind, used or not
import asyncio
import contextlib
import errno
import itertools
import json
import os
import ssl
import time
import tracemalloc
import zlib
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from pghookd.cli.main import cli
from pghookd.egress.resolver import GuardedResolver
from pghookd.egress.sender import Sender
from pghookd.egress.tls import anchors, trust
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, parse_places
from support.fault_server import Certificates, Form, Liar, answering, naming, receiving

LOOPBACK = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))
PUBLIC, PUBLIC_V6 = "93.184.216.34", "2606:2800:220:1::248"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"webhook-id: evt_1\r\ncontent-length: 2\r\n\r\n"
BLOCKED = Fault(Outcome.BLOCKED, "address")


class Watched(Sender):
    """Notes the sockets that are opened; addresses beyond this machine are found closed instead of dialled."""

    def __init__(self, policy, **changes):
        super().__init__(
            policy=policy,
            **{"connections_max": 8, "connect_timeout_s": 2.0, "response_bytes_max": 4096, **changes},
        )
        self.opened = []

    def _open_socket(self, info):
        made = super()._open_socket(info)
        self.opened.append(info[4][0])
        if not info[4][0].startswith("127."):
            made.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, "not dialled in tests")
        return made

    def forget(self):
        """Expire the connector's cache of names."""
        self._connector.clear_dns_cache()


async def post(sender, url, timeout_s=5.0):
    target = sender.target_of(url)
    return target if isinstance(target, Fault) else await sender.post(target, HEAD, b"{}", timeout_s)


@contextlib.asynccontextmanager
async def resolving(table, policy, **changes):
    """A watched sender and its name server, whose answers may be used for no time at all."""
    async with naming(table) as (server, names):
        names.ttl_s = 0
        resolver = GuardedResolver(policy, nameservers=[server])
        async with Watched(policy, resolver=resolver, **changes) as sender:
            yield sender, names
        await resolver.close()


# Names that turn


async def test_a_name_that_turns_from_public_to_private_is_never_connected_to():
    turns = [
        ["127.0.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["::1"],
        ["169.254.169.254"],
        ["10.0.0.1"],
    ]
    table = {f"turn{number}.example.com": [PUBLIC, PUBLIC_V6] for number in range(len(turns))}
    async with receiving(answering(OK)) as receiver, resolving(table, EgressPolicy()) as (sender, _):
        urls = [f"http://{name}:{receiver.port}/" for name in table]
        assert {await post(sender, url) for url in urls} == {Fault(Outcome.UNREACHABLE, "refused")}
        assert set(sender.opened) == {PUBLIC, PUBLIC_V6}
        sender.opened.clear()
        sender.forget()
        table.update(zip(table, turns, strict=True))
        assert [await post(sender, url) for url in urls] == [BLOCKED] * len(turns)
        assert (sender.opened, receiver.connections) == ([], 0)


async def test_a_name_that_turns_between_two_questions_of_one_lookup():
    class Turning(dict):
        """Every second question is answered with an address of ours."""

        turns = itertools.cycle([[PUBLIC, PUBLIC_V6], ["127.0.0.1", "::1"]])

        def get(self, name, default=None):
            return next(self.turns)

    table = Turning({"turn.example.com": []})
    async with receiving(answering(OK)) as receiver, resolving(table, EgressPolicy()) as (sender, _):
        for _ in range(20):
            sender.forget()
            answer = await post(sender, f"http://turn.example.com:{receiver.port}/")
            assert answer in {BLOCKED, Fault(Outcome.UNREACHABLE, "refused")}
        assert "127.0.0.1" not in sender.opened
        assert receiver.connections == 0


async def test_a_kept_connection_keeps_its_address_and_a_new_one_is_checked():
    policy = EgressPolicy(
        allow=parse_places(["127.0.0.2"])
    )  # in the part of a public address, and really dialled
    table = {"turn.example.com": ["127.0.0.2"]}
    last = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with (
        receiving(answering(OK, last), host="127.0.0.2") as receiver,
        resolving(table, policy) as (sender, _),
    ):
        url = f"http://turn.example.com:{receiver.port}/"
        got = [await post(sender, url)]
        table["turn.example.com"] = ["127.0.0.1"]
        sender.forget()
        got += [await post(sender, url) for _ in range(2)]
    assert got == [Reply(200, b"ok"), Reply(200, b"ok"), BLOCKED]
    assert sender.opened == ["127.0.0.2"]


async def test_each_address_that_is_tried_is_judged_at_the_socket():
    policy = EgressPolicy(allow=parse_places(["127.0.0.2"]))
    async with receiving(answering(OK)) as canary, receiving(answering(OK), host="127.0.0.2") as fine:
        async with Watched(policy, resolver=Liar("127.0.0.2", "127.0.0.1", "::1")) as sender:
            assert await post(sender, f"http://a.example.com:{canary.port}/") == BLOCKED
        assert (sender.opened, canary.connections) == (["127.0.0.2"], 0)
        async with Watched(policy, resolver=Liar("127.0.0.1", "127.0.0.3", "127.0.0.2")) as sender:
            assert await post(sender, f"http://a.example.com:{fine.port}/") == Reply(200, b"ok")
        assert sender.opened == ["127.0.0.2"]


async def test_redirects_are_never_followed():
    async with receiving(answering(OK)) as canary:
        here = f"127.0.0.1:{canary.port}"
        places = (f"http://{here}/", f"//{here}/", "http://169.254.169.254/latest", "/again", "http://[::1]/")
        redirects = [(status, place) for status in (300, 301, 302, 303, 307, 308) for place in places]
        answers = [
            f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nRefresh: 0;url={place}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
            for status, place in redirects
        ]
        async with receiving(answering(*answers)) as receiver, Watched(LOOPBACK) as sender:
            got = [await post(sender, f"http://127.0.0.1:{receiver.port}/") for _ in answers]
        assert got == [Reply(status, b"", location=place) for status, place in redirects]
        assert (sender.opened, receiver.connections, canary.connections) == (["127.0.0.1"], 1, 0)


# Connections shared by endpoints


async def test_connections_are_shared_by_scheme_host_and_port_without_state():
    seen = []
    answer = (
        b"HTTP/1.1 401 No\r\nSet-Cookie: a=1; Domain=example.com\r\nWWW-Authenticate: Negotiate abc\r\n"
        b"Authentication-Info: x\r\nClear-Site-Data: *\r\nStrict-Transport-Security: max-age=9\r\n"
        b"Content-Length: 0\r\n\r\n"
    )

    async def handler(visit):
        while True:
            seen.append(await visit.request())
            await visit.send(answer)

    table = {name: ["127.0.0.1"] for name in ("a.example.com", "b.example.com")}
    async with (
        receiving(handler) as one,
        receiving(handler) as two,
        resolving(table, LOOPBACK, connect_timeout_s=0.3) as (sender, _),
    ):
        counted = {}
        for url in (
            f"http://a.example.com:{one.port}/site-1?token=1",
            f"http://A.example.com.:{one.port}/site-2",  # the same host: shared
            f"http://b.example.com:{one.port}/site-3",  # the same address by another name: not
            f"http://127.0.0.1:{one.port}/site-4",
            f"http://a.example.com:{two.port}/site-5",
            f"https://a.example.com:{one.port}/site-6",  # no TLS there: an own connection, which fails
        ):
            await post(sender, url)
            counted[url.rpartition("/")[2].partition("?")[0]] = one.connections + two.connections
    assert counted == {"site-1": 1, "site-2": 1, "site-3": 2, "site-4": 3, "site-5": 4, "site-6": 5}
    assert [head.count(b"\r\n") for head, _ in seen] == [5] * 5  # request line, host, and the given ones
    assert seen[1] == (b"POST /site-2 HTTP/1.1\r\nhost: a.example.com:%d\r\n" % one.port + HEAD, b"{}")


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def limited(context, version):
    context.maximum_version = version
    return context


async def test_what_is_wrong_with_a_certificate_is_told_apart(authority):
    make = authority.server_context
    here = "IP:127.0.0.1"
    good, unreachable = Reply(200, b"ok"), Outcome.UNREACHABLE
    servers = [
        (make("fine", here), good),
        (limited(make("twelve", here), ssl.TLSVersion.TLSv1_2), good),
        (make("expired", here, expired=True), Fault(unreachable, "tls_expired")),
        (make("unborn", here, unborn=True), Fault(unreachable, "tls_expired")),
        (make("own", here, self_signed=True), Fault(unreachable, "tls_untrusted")),
        (make("other", "DNS:other.example.com"), Fault(unreachable, "tls_name")),
        (make("neighbour", "IP:127.0.0.2"), Fault(unreachable, "tls_name")),
        (make("127.0.0.1", "DNS:x.example.com"), Fault(unreachable, "tls_name")),  # in the common name alone
    ]
    got = []
    async with Watched(LOOPBACK, ca_file=str(authority.ca_file)) as sender:
        for context, _ in servers:
            async with receiving(answering(OK), tls=context) as receiver:
                got.append((context, await post(sender, f"https://127.0.0.1:{receiver.port}/")))
                assert not isinstance(got[-1][1], Fault) or not sender._wires
    assert got == servers


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_before_1_2_is_not_spoken(authority):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = limited(authority.server_context("old", "IP:127.0.0.1"), version)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the version that parts us
        async with (
            receiving(answering(OK), tls=context) as receiver,
            Watched(LOOPBACK, ca_file=str(authority.ca_file)) as sender,
        ):
            answer = await post(sender, f"https://127.0.0.1:{receiver.port}/")
        assert answer in {Fault(Outcome.UNREACHABLE, "tls"), Fault(Outcome.UNREACHABLE, "reset")}


async def test_the_systems_trust_store_counts_and_the_operators_file_adds_to_it(
    authority, tmp_path, monkeypatch
):
    system = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(system.ca_file))
    got = []
    for ca_file in (None, str(authority.ca_file)):
        async with Watched(LOOPBACK, ca_file=ca_file) as sender:
            for each in (system, authority):
                context = each.server_context("x", "IP:127.0.0.1")
                async with receiving(answering(OK), tls=context) as receiver:
                    got.append(await post(sender, f"https://127.0.0.1:{receiver.port}/"))
    fine, untrusted = Reply(200, b"ok"), Fault(Outcome.UNREACHABLE, "tls_untrusted")
    assert got == [fine, untrusted, fine, fine]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Form.PROPER, Reply(200, b"ok")),
        (Form.OLD, Reply(200, b"ok")),
        (Form.NO_CA, Fault(Outcome.UNREACHABLE, "tls_untrusted: not_ca")),
        (Form.NO_SIGNING, Fault(Outcome.UNREACHABLE, "tls_untrusted: not_ca")),
    ],
)
async def test_an_authority_counts_alike_on_every_python(tmp_path, form, expected):
    authority = Certificates(tmp_path, form)
    context = authority.server_context("x", "IP:127.0.0.1")
    async with (
        Watched(LOOPBACK, ca_file=str(authority.ca_file)) as sender,
        receiving(answering(OK), tls=context) as receiver,
    ):
        assert await post(sender, f"https://127.0.0.1:{receiver.port}/") == expected


async def test_an_intermediate_authority_may_be_the_anchor(tmp_path):
    (tmp_path / "below").mkdir()
    below = Certificates(tmp_path / "below", above=Certificates(tmp_path))
    async with (
        Watched(LOOPBACK, ca_file=str(below.ca_file)) as sender,
        receiving(answering(OK), tls=below.server_context("x", "IP:127.0.0.1")) as receiver,
    ):
        assert await post(sender, f"https://127.0.0.1:{receiver.port}/") == Reply(200, b"ok")


def test_no_setting_switches_verification_off():
    for context in (trust(), trust(None)):
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


# Hostile answers


INTERIM = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    INTERIM + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n",
]


async def test_a_connection_that_drops_at_any_byte():
    async def handler(visit):
        data, how = plan
        await visit.request()
        await visit.send(data)
        if how == "reset":
            visit.reset()

    plan = (b"", "")
    reset, seen = Fault(Outcome.UNREACHABLE, "reset"), []
    async with receiving(handler) as receiver, Watched(LOOPBACK) as sender:
        for whole, how in itertools.product(WHOLE, ("close", "reset")):
            decided = whole.index(b"200 OK")
            decided = whole.index(b"\r\n\r\n", decided) + 4
            for cut in range(len(whole)):
                plan = (whole[:cut], how)
                answer = await post(sender, f"http://127.0.0.1:{receiver.port}/")
                fine = isinstance(answer, Reply) and answer.status == 200
                if cut < decided or how == "reset":  # a reset may overtake the answer
                    assert answer == reset or (fine and cut >= decided), (whole[:cut], how, answer)
                else:
                    assert fine, (whole[:cut], answer)
                seen.append(fine)
        assert not sender._wires
    assert any(seen)


def forever(*pieces):
    return itertools.cycle(pieces)


def after(head, *pieces):
    return itertools.chain([head], forever(*pieces))


def bomb(wbits):
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join((*(packer.compress(bytes(1 << 20)) for _ in range(16)), packer.flush()))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_ANSWER = {"bad_response", "too_much_response"}


def hostile():
    """Yield what a receiver sends, in pieces, and what it may come to: a status or the name of an error."""
    random = Random(7)
    gzip, deflate = bomb(31), bomb(15)
    yield "many headers", [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9000 + b"\r\n"], NO_ANSWER
    yield "headers for ever", after(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 500), NO_ANSWER
    yield "a long header", [b"HTTP/1.1 200 OK\r\na: " + b"b" * 60_000 + b"\r\n\r\n"], NO_ANSWER
    yield "a header for ever", after(b"HTTP/1.1 200 OK\r\na: ", b"b" * 5000), NO_ANSWER
    yield "a reason for ever", after(b"HTTP/1.1 200 ", b"b" * 5000), NO_ANSWER
    yield "a name for ever", after(b"HTTP/1.1 200 OK\r\n", b"b" * 5000), NO_ANSWER
    yield "folded lines", after(b"HTTP/1.1 200 OK\r\na: b\r\n", b" c\r\n" * 500), NO_ANSWER
    yield "empty lines", forever(b"\r\n" * 2000), NO_ANSWER
    yield "1xx", forever(b"HTTP/1.1 103 E\r\n\r\n" * 500), NO_ANSWER
    yield "large 1xx", forever(b"HTTP/1.1 100 C\r\n" + b"a: b\r\n" * 100 + b"\r\n"), NO_ANSWER
    yield "two bytes a time", after(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"ab"), {200}
    yield "a body for ever", after(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)), {200}
    yield "chunks of one", after(CHUNKED, b"1\r\na\r\n" * 500), {200}
    yield "a huge chunk", [CHUNKED + b"ffffffffffffffff\r\n" + b"a" * 60_000], {200}
    yield "a chunk size for ever", after(CHUNKED, b"0" * 5000), {200}
    yield "chunk extensions", after(CHUNKED + b"1;", b"a=b;" * 1000), {200}
    yield "trailers", after(CHUNKED + b"0\r\n", b"a: b\r\n" * 500), {200}
    for name, data in (
        ("gzip", gzip),
        ("deflate", deflate),
        ("br", gzip),
        ("zstd", gzip),
        ("gzip, gzip", gzip),
    ):
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        yield f"{name} bomb", [head, data], {200}
    yield "a chunked bomb", [CHUNKED[:-2] + b"Content-Encoding: gzip\r\n\r\n%x\r\n" % len(gzip), gzip], {200}
    yield "noise", forever(*(random.randbytes(4000) for _ in range(8))), NO_ANSWER
    yield "zeros", forever(bytes(4000)), NO_ANSWER
    yield (
        "two lengths",
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
        {200, *NO_ANSWER},
    )
    yield "length and chunks", [CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n"], {200, *NO_ANSWER}
    yield "a wide length", [b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"], NO_ANSWER
    yield "a minus", [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"], NO_ANSWER
    yield "NUL in a header", [b"HTTP/1.1 200 OK\r\na: \x00b\r\nContent-Length: 0\r\n\r\n"], {200, *NO_ANSWER}


async def test_no_answer_stalls_the_loop_or_goes_beyond_its_time():
    async def handler(visit):
        while True:
            await visit.request()
            for piece in pieces:
                await visit.send(piece)
                await asyncio.sleep(0)

    plans = list(hostile())
    pieces, told, allowed, lags = [], {}, {}, []
    ticking = asyncio.create_task(tick(lags))
    async with receiving(handler) as receiver, Watched(LOOPBACK) as sender:
        for name, data, expected in plans:
            pieces, allowed[name] = data, expected
            started = time.monotonic()
            answer = await post(sender, f"http://127.0.0.1:{receiver.port}/", timeout_s=0.5)
            told[name] = answer.status if isinstance(answer, Reply) else answer.error
            assert not isinstance(answer, Reply) or len(answer.body) <= 4096, name
            assert time.monotonic() - started < 2.5, name
    ticking.cancel()
    assert {name: what for name, what in told.items() if what not in allowed[name]} == {}
    assert max(lags) < 0.6


async def tick(lags):
    """Measure for how long nothing else was done."""
    while True:
        started = time.monotonic()
        await asyncio.sleep(0.005)
        lags.append(time.monotonic() - started - 0.005)


@pytest.mark.skipif("AIOHTTP_NO_EXTENSIONS" in os.environ, reason="that parser is not what is stated")
async def test_the_memory_of_one_answer_is_bounded():
    pieces = {
        "a body": [b"HTTP/1.1 200 OK\r\n\r\n", *[bytes(16384)] * 4],
        "small chunks": [CHUNKED + b"2\r\nab\r\n" * 9400],
        "two bytes a time": [b"HTTP/1.1 200 OK\r\n\r\n", *[b"ab"] * 3000],
        "gzip": [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 99999\r\n\r\n", bomb(31)],
        "1xx": [b"HTTP/1.1 103 E\r\n\r\n" * 3700],
    }

    async def handler(visit):
        while True:
            await visit.request()
            for piece in chosen:
                await visit.send(piece)
                await asyncio.sleep(0)

    taken, chosen = {}, []
    async with receiving(handler) as receiver, Watched(LOOPBACK) as sender:
        target = sender.target_of(f"http://127.0.0.1:{receiver.port}/")
        tracemalloc.start()
        try:
            for name, chosen in pieces.items():  # noqa: B007 -- the handler sends it
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                await sender.post(target, HEAD, b"{}", 0.2)
                taken[name] = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert {name: size for name, size in taken.items() if size > 2 << 20} == {}


# The command


ORDINARY = (
    (Path(__file__).parents[2] / "unit" / "egress" / "ordinary_urls.txt").read_text("utf-8").splitlines()
)


def check(*args, **variables):
    environ = {"PGHOOKD_DATABASE_URL": None, **variables}
    done = CliRunner().invoke(cli, ["url", "check", *args, "--json"], env=environ)
    told = json.loads(done.stdout)
    return done.exit_code, told["verdict"], told.get("reason")


def test_the_command_allows_ordinary_urls_and_names_what_it_refuses():
    for line in ORDINARY:
        url, *addresses = line.split()
        given = itertools.chain.from_iterable(("--address", text) for text in addresses)
        assert check(url, *given) == (0, "allowed", None), line
    inner = {
        ("https://a.example.com", "--address", "::ffff:10.0.0.1"): "address",
        ("https://a.example.com", "--address", PUBLIC, "--address", "2606:4700::5efe:7f00:1"): "address",
        ("https://u@a.example.com", "--address", PUBLIC): "userinfo",
        ("https://a.example.com:25", "--address", PUBLIC): "port",
        ("gopher://a.example.com", "--address", PUBLIC): "scheme",
        ("https://a.corp", "--address", PUBLIC): "name",
        ("https://0x7f.1", "--address", PUBLIC): "literal",
        ("https://a.example.com/ x", "--address", PUBLIC): "url",
    }
    assert {args: check(*args) for args in inner} == {
        args: (1, "blocked", name) for args, name in inner.items()
    }


def test_the_command_follows_the_operators_lists():
    allow = {"PGHOOKD_EGRESS_ALLOW": "10.0.0.0/8,*.corp"}
    deny = {"PGHOOKD_EGRESS_DENY": f"{PUBLIC}/32,example.org"}
    assert [
        check("https://a.example.com", "--address", "10.1.1.1", **allow)[0],
        check("https://a.corp", "--address", "192.168.0.1", **allow)[0],
        check("https://a.corp", "--address", "169.254.169.254", **allow)[0],
        check("https://a.example.com", "--address", PUBLIC, **deny)[0],
        check("https://a.example.org", "--address", "1.1.1.1", **deny)[0],
        check("http://a.example.com", "--address", "1.1.1.1", PGHOOKD_EGRESS_HTTPS_ONLY="true")[0],
        check("https://a.example.com", "--address", "1.1.1.1", PGHOOKD_EGRESS_PORTS="80")[0],
    ] == [0, 0, 1, 1, 1, 1, 1]


def test_a_machine_that_trusts_nobody_is_noticed(monkeypatch, tmp_path):
    assert isinstance(anchors(), bool)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(empty))
    assert anchors() is False
    assert anchors(str(Certificates(tmp_path).ca_file)) is True
    (empty / "0123abcd.0").write_text("read when it is needed")
    assert anchors() is True
    with pytest.raises(OSError, match="No such file"):
        anchors(str(tmp_path / "none.pem"))
