"""The second gate: every address of an answer is judged, and lookups end."""

import asyncio
import contextlib
import socket
import time

import pytest

from pghookd.egress.resolver import AddressRefused, GuardedResolver, NameUnknown
from pghookd.settings.network import EgressPolicy, parse_places
from support.fault_server import naming

PUBLIC = "93.184.216.34"  # never dialled here


async def resolve(table, host, *, policy=None, budget_s=3.0):
    async with naming(table) as (server, names):
        resolver = GuardedResolver(policy or EgressPolicy(), nameservers=[server], budget_s=budget_s)
        try:
            found = await resolver.resolve(host, 443)
        finally:
            await resolver.close()
        return found, names


async def test_public_answers_are_given_in_both_families():
    found, _ = await resolve({"shop.example.com": [PUBLIC, "2606:4700::1111"]}, "shop.example.com")
    assert {(entry["host"], entry["family"]) for entry in found} == {
        (PUBLIC, socket.AF_INET),
        ("2606:4700::1111", socket.AF_INET6),
    }
    assert {entry["port"] for entry in found} == {443}
    assert {entry["hostname"] for entry in found} == {"shop.example.com"}


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        [PUBLIC, "10.0.0.1"],
        ["127.0.0.1", PUBLIC],
        [PUBLIC, "::1"],
        [PUBLIC, "fd00:ec2::254"],
        [PUBLIC, "::ffff:169.254.169.254"],
        [PUBLIC, "64:ff9b::7f00:1"],
        [PUBLIC, "2606:4700::1111", "169.254.169.254"],
    ],
)
async def test_one_bad_answer_refuses_all(addresses):
    with pytest.raises(AddressRefused) as caught:
        await resolve({"rebind.example.com": addresses}, "rebind.example.com")
    assert caught.value.refusal.name == "address"
    assert not any(address in str(caught.value) for address in addresses)


async def test_a_name_opened_by_the_operator_may_lead_inside():
    policy = EgressPolicy(allow=parse_places(["hooks.corp"]))
    found, _ = await resolve({"hooks.corp": ["10.0.0.1"]}, "hooks.corp", policy=policy)
    assert [entry["host"] for entry in found] == ["10.0.0.1"]
    with pytest.raises(AddressRefused):
        await resolve({"hooks.corp": ["169.254.169.254"]}, "hooks.corp", policy=policy)


async def test_a_network_opened_by_the_operator_may_be_led_to():
    policy = EgressPolicy(allow=parse_places(["10.0.0.0/8"]))
    found, _ = await resolve({"a.example.com": ["10.0.0.1", PUBLIC]}, "a.example.com", policy=policy)
    assert len(found) == 2


async def test_the_hosts_file_is_read():
    policy = EgressPolicy(allow=parse_places(["localhost"]))
    found, names = await resolve({}, "localhost", policy=policy)
    assert {entry["host"] for entry in found} <= {"127.0.0.1", "::1"}
    assert names.asked == []


async def test_names_are_absolute(monkeypatch):
    monkeypatch.setenv("LOCALDOMAIN", "inner.example.com")  # a search list
    async with naming({"single.inner.example.com": [PUBLIC]}) as (server, names):
        resolver = GuardedResolver(EgressPolicy(), nameservers=[server])
        with pytest.raises(NameUnknown):
            await resolver.resolve("single", 443)
        await resolver.close()
    assert set(names.asked) <= {"single"}


@pytest.mark.parametrize("table", [{}, {"a.example.com": []}])
async def test_no_such_name_or_no_address(table):
    with pytest.raises(NameUnknown):
        await resolve(table, "a.example.com")


@pytest.mark.parametrize("host", ["a" * 70 + ".com", "..", "a..com", ""])
async def test_a_name_that_cannot_be_asked_for(host):
    with pytest.raises(NameUnknown):
        await resolve({}, host)


async def test_silence_ends_with_the_budget():
    started = time.monotonic()
    with pytest.raises(NameUnknown):
        await resolve({"silent.example.com": None}, "silent.example.com", budget_s=0.3)
    assert time.monotonic() - started < 2


async def test_what_was_not_there_is_asked_for_again_before_long():
    table = {"a.example.com": []}
    async with naming(table) as (server, names):
        resolver = GuardedResolver(EgressPolicy(), nameservers=[server], forget_s=0.02)
        with pytest.raises(NameUnknown):
            await resolver.resolve("a.example.com", 443)
        table["a.example.com"] = [PUBLIC]
        found, deadline = None, time.monotonic() + 5
        while found is None and time.monotonic() < deadline:
            with contextlib.suppress(NameUnknown):
                (found,) = await resolver.resolve("a.example.com", 443)
            await asyncio.sleep(0.01)
        await resolver.close()
    assert found is not None
    assert found["host"] == PUBLIC
    assert len(names.asked) >= 4
