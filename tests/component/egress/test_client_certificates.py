"""Client certificates: shown to their receivers, through a proxy too, and to nobody else by a shared connection."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

import pytest

from pghookd.egress.client_certificates import CONTEXTS_MAX, ClientContexts, Unusable, identity_of
from pghookd.egress.resolver import GuardedResolver
from pghookd.egress.sender import Sender
from pghookd.model.client_certificate import ClientCertificate
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, Proxy, parse_places
from support.fault_server import Certificates, naming, receiving
from support.proxy_server import forwarding

LOOPBACK = EgressPolicy(allow=parse_places(["127.0.0.0/8"]))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"webhook-id: evt_1\r\ncontent-length: 2\r\n\r\n"
PUBLIC = "93.184.216.34"
REFUSED = {Fault(Outcome.UNREACHABLE, "tls"), Fault(Outcome.UNREACHABLE, "reset")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def shown(authority):
    return {name: ClientCertificate(**authority.client(name)) for name in ("a", "b")}


def sending(authority, **changes):
    settings = {
        "policy": LOOPBACK,
        "connections_max": 8,
        "connect_timeout_s": 5.0,
        "response_bytes_max": 4096,
    }
    return Sender(**settings | {"ca_file": str(authority.ca_file)} | changes)


async def post(sender, url, certificate=None):
    target = sender.target_of(url, certificate)
    return target if isinstance(target, Fault) else await sender.post(target, HEAD, b"{}", 10.0)


def peer_of(visit):
    """Return the name that the other side has shown; None: none."""
    found = visit.writer.get_extra_info("peercert")
    return found["subject"][0][0][1] if found else None


@contextlib.asynccontextmanager
async def looking(context):
    """A receiver that notes who has shown what, for each request."""
    seen = []

    async def handler(visit):
        while True:
            await visit.request()
            seen.append(peer_of(visit))
            await visit.send(OK)

    async with receiving(handler, tls=context) as receiver:
        yield receiver, seen


async def test_a_server_that_demands_a_certificate_gets_it_and_refuses_others(authority, shown, tmp_path):
    context = authority.demand(authority.server_context("mtls", "IP:127.0.0.1"))
    stranger = ClientCertificate(**Certificates(tmp_path).client("stranger"))
    async with looking(context) as (receiver, seen), sending(authority) as sender:
        url = f"https://127.0.0.1:{receiver.port}/"
        assert await post(sender, url, shown["a"]) == Reply(200, b"ok")
        assert await post(sender, url) in REFUSED
        assert await post(sender, url, stranger) in REFUSED
        assert await post(sender, url, shown["b"]) == Reply(200, b"ok")
    assert seen == ["a", "b"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_connection_is_shared_by_those_who_show_different_things(authority, shown, version):
    context = authority.demand(authority.server_context("some", "IP:127.0.0.1"), ssl.CERT_OPTIONAL)
    context.maximum_version = version
    again = ClientCertificate(shown["a"].certificate, shown["a"].key)
    other_key = ClientCertificate(shown["a"].certificate + "\n", shown["a"].key)
    async with looking(context) as (receiver, seen), sending(authority) as sender:
        url = f"https://127.0.0.1:{receiver.port}/"
        for each in (None, shown["a"], shown["b"], again, None, shown["b"], shown["a"], other_key):
            assert await post(sender, url, each) == Reply(200, b"ok")
        await asyncio.gather(*(post(sender, url, each) for each in (None, *shown.values()) * 20))
    assert seen[:8] == [None, "a", "b", "a", None, "b", "a", "a"]
    assert sorted(map(str, seen[8:])) == ["None"] * 20 + ["a"] * 20 + ["b"] * 20


async def test_the_same_certificate_shares_a_connection_and_nothing_else_does(authority, shown):
    context = authority.demand(authority.server_context("count", "IP:127.0.0.1"), ssl.CERT_OPTIONAL)
    counted = []
    async with looking(context) as (receiver, _), sending(authority) as sender:
        for each in (None, None, shown["a"], shown["a"], shown["b"], None, shown["a"]):
            await post(sender, f"https://127.0.0.1:{receiver.port}/", each)
            counted.append(receiver.connections)
    assert counted == [1, 1, 2, 2, 3, 3, 3]
    certificate, key = shown["a"].certificate, shown["a"].key
    assert identity_of(shown["a"]) != identity_of(ClientCertificate(certificate, key + "\n"))


async def test_the_server_is_verified_as_before(authority, shown, tmp_path):
    other = Certificates(tmp_path).server_context("other", "IP:127.0.0.1")
    for context, name in (
        (other, "tls_untrusted"),
        (authority.server_context("name", "DNS:x.example.com"), "tls_name"),
    ):
        async with looking(context) as (receiver, seen), sending(authority) as sender:
            answer = await post(sender, f"https://127.0.0.1:{receiver.port}/", shown["a"])
        assert (answer, seen) == (Fault(Outcome.UNREACHABLE, name), [])


async def test_it_is_shown_within_a_tunnel_and_not_to_the_proxy(authority, shown):
    context = authority.demand(authority.server_context("far", "DNS:a.example.com"), ssl.CERT_OPTIONAL)
    async with (
        naming({"a.example.com": [PUBLIC]}) as (server, _),
        looking(context) as (receiver, seen),
        forwarding(leads={f"{PUBLIC}:443": receiver.port}) as proxy,
    ):
        resolver = GuardedResolver(EgressPolicy(), nameservers=[server])
        way = {"policy": EgressPolicy(), "resolver": resolver, "proxy": Proxy("127.0.0.1", proxy.port)}
        async with sending(authority, **way) as sender:
            for each in (shown["a"], None, shown["b"], shown["a"]):
                assert await post(sender, "https://a.example.com/", each) == Reply(200, b"ok")
        await resolver.close()
    assert seen == ["a", None, "b", "a"]
    assert len(proxy.heads) == 3


async def test_one_that_openssl_does_not_take_is_told_apart(authority):
    weak = ClientCertificate(**authority.client("weak", rsa_bits=1024))
    context = authority.server_context("x", "IP:127.0.0.1")
    async with looking(context) as (receiver, seen), sending(authority) as sender:
        answer = await post(sender, f"https://127.0.0.1:{receiver.port}/", weak)
        assert not sender._connector._acquired
    assert (answer, seen) == (Fault(Outcome.UNREACHABLE, "tls: client_certificate"), [])


async def test_a_diverted_request_shows_no_certificate(authority, shown):
    sender = sending(authority)
    sender.diverted_to = 7
    assert sender.target_of("https://a.example.com/", shown["a"]).request.certificate is None


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_contexts_are_few_are_made_once_and_away_from_the_loop(authority, shown):
    made_in = []

    def make():
        made_in.append(threading.get_ident())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    contexts = ClientContexts(make)
    before = open_files()
    found = await asyncio.gather(*(contexts.context(shown["a"]) for _ in range(20)))
    assert len(set(found)) == len(made_in) == 1
    assert threading.get_ident() not in made_in
    for number in range(CONTEXTS_MAX):
        await contexts.context(ClientCertificate(shown["b"].certificate + "\n" * number, shown["b"].key))
        assert await contexts.context(shown["a"]) is found[0]
    assert len(contexts._kept) == CONTEXTS_MAX
    assert open_files() <= before + 1
    assert shown["a"].key not in repr(contexts)


async def test_a_key_that_asks_for_a_password_asks_no_terminal(authority, shown):
    """An encrypted key was rejected before; here it fails without waiting for somebody to type."""
    contexts = ClientContexts(lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    locked = object.__new__(ClientCertificate)
    object.__setattr__(locked, "certificate", shown["a"].certificate)
    object.__setattr__(locked, "key", LOCKED)
    with pytest.raises(Unusable):
        await asyncio.wait_for(contexts.context(locked), 10)


LOCKED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIH0MF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBDAAAAAAAAAAAAAAAAA
AAAAAgIIADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQAAAAAAAAAAAAAAAA
-----END ENCRYPTED PRIVATE KEY-----
"""
