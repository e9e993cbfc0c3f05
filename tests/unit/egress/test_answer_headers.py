"""The evidence of a failed attempt as text: bounded, safe for jsonb, and without anything secret."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.egress.evidence import HEADERS_BYTES_MAX, Dial, kept_headers, secrets_of, text_of

REQUEST = (
    b"POST /hooks/T0KEN?sig=S1GN HTTP/1.1\r\nhost: a.example\r\n"
    b"content-type: application/json\r\nuser-agent: pghookd/1\r\nwebhook-id: evt_1\r\nwebhook-timestamp: 17\r\n"
    b"webhook-signature: v1,c2lnbmVk\r\nx-webhook-topic: order_created\r\nauthorization: Bearer b34rer\r\n"
    b"x-shop: internal\r\nx-env: a\r\nx-webhook-attempt: 1\r\ncontent-length: 2\r\n\r\n"
)
NAMES = st.one_of(
    st.binary(min_size=1, max_size=40), st.sampled_from([b"Server", b"set-cookie", b"X-Api-Key"])
)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=400)), max_size=40)


def kept(*lines, secrets=()):
    """Return the headers kept of `name: value` lines, and how many were left out."""
    pairs = [tuple(part.encode("utf-8", "surrogateescape") for part in line.split(": ", 1)) for line in lines]
    return kept_headers(pairs, secrets)


def test_names_are_in_lower_case_and_lines_of_one_name_are_joined():
    found, left_out = kept("Server: nginx", "Via: a", "VIA: b", "X-Empty: ")
    assert list(found.items()) == [("server", "nginx"), ("via", "a, b"), ("x-empty", "")]
    assert left_out == 0


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie", "Cookie", "Authorization", "Proxy-Authorization", "WWW-Authenticate", "Proxy-Authenticate",
        "X-CSRF-Token", "X-Secret", "X-Api-Key", "x-author", "Session-Id", "Location", "Content-Location", "Refresh",
        "X-Password", "Webhook-Signature",
    ],
)  # fmt: skip
def test_a_private_name_is_left_out_and_counted(name):
    assert kept(f"{name}: v", "server: nginx") == ({"server": "nginx"}, 1)


@pytest.mark.parametrize(
    "value",
    [
        "Bearer b34rer", "got b34rer", "v1,c2lnbmVk", "/hooks/T0KEN", "https://a.example/hooks/T0KEN", "?sig=S1GN",
        "internal", "the-own-secret",
    ],
)  # fmt: skip
def test_what_repeats_a_secret_of_the_request_is_left_out(value):
    assert kept(f"x-echo: {value}", secrets=secrets_of(REQUEST, ["the-own-secret"])) == ({}, 1)


def test_a_name_that_repeats_a_secret_is_left_out():
    assert kept("x-The-Own: 1", secrets=["The-Own"]) == ({}, 1)


@pytest.mark.parametrize("value", ["application/json", "evt_1", "order_created", "pghookd/1", "a", "/", "17"])
def test_what_repeats_the_rest_of_the_request_is_kept(value):
    assert kept(f"x-echo: {value}", secrets=secrets_of(REQUEST)) == ({"x-echo": value}, 0)


@pytest.mark.parametrize("part", [b"T0KEN-in-a-path", b"T0KEN-in-a-query"])
def test_a_long_part_of_path_or_query_alone_is_hidden(part):
    request = b"POST /hooks/T0KEN-in-a-path/x?a=1&sig=T0KEN-in-a-query HTTP/1.1\r\nhost: a.example\r\n\r\n"
    assert kept(f"x-echo: <{part.decode()}>", secrets=secrets_of(request)) == ({}, 1)


def test_a_root_path_and_a_short_query_hide_nothing():
    assert secrets_of(b"POST /?a HTTP/1.1\r\nhost: a.example\r\n\r\n") == []


def test_a_line_that_does_not_fit_is_left_out_and_a_shorter_one_kept():
    found, left_out = kept(f"x: {'a' * 1021}", "y: bb", "z: c", "w: d")
    assert (list(found), left_out) == (["x", "z"], 2)


def test_bytes_that_are_not_text_are_replaced():
    assert kept_headers([(b"x", b"a\x00b\xff\tc\x1b\x9b")], ()) == ({"x": "a\ufffdb\ufffd c\ufffd\ufffd"}, 0)


def bytes_of(found):
    return sum(len((name + value).encode()) for name, value in found.items())


@given(HEADERS)
def test_headers_are_bounded_and_every_line_is_kept_or_counted(raw):
    found, left_out = kept_headers(raw, ["secret"])
    assert bytes_of(found) <= HEADERS_BYTES_MAX
    assert 0 <= left_out <= len(raw)
    assert len(raw) - left_out >= len(found)


@given(HEADERS)
def test_the_text_is_what_jsonb_takes(raw):
    text = text_of(0.0, {"dns": 0.1}, address=("::1", 80), is_proxied=False, headers=raw)
    text.encode("utf-8")  # no lone surrogate
    told = json.loads(text)
    assert "\\u0000" not in text
    assert "\x00" not in "".join(name + value for name, value in told.get("headers", {}).items())
    assert len(text) < HEADERS_BYTES_MAX * 2 + 400


@given(HEADERS, st.text(min_size=4, max_size=8))
def test_no_value_contains_a_secret(raw, secret):
    echo = [(b"x-echo", b"-" + secret.encode() + b"-")]
    found, _ = kept_headers(raw + echo + raw, [secret])
    assert not any(secret in value for value in found.values())


def test_the_text_has_no_key_for_an_unknown_value():
    times = {"dns": 10.003, "connect": 10.0104, "tls": None, "sent": 10.011, "headers": None}
    told = text_of(10.0, times, address=("203.0.113.9", 443), is_proxied=True, is_reused=True)
    assert json.loads(told) == {
        "address": "203.0.113.9:443",
        "via": "proxy",
        "reused": True,
        "reached": "sent",
        "ms": {"dns": 3, "connect": 10, "sent": 11},
    }
    told = text_of(10.0, {"dns": None}, address=None, is_proxied=True)
    assert json.loads(told) == {"reached": None, "ms": {}}


def test_a_dial_forgets_that_an_earlier_address_was_connected():
    dial = Dial(dns_at=1.0)
    dial.to(("2001:db8::1", 443))
    dial.connected_at = 2.0
    dial.to(("203.0.113.9", 443))
    assert dial.times() == {"dns": 1.0, "connect": None}
    told = text_of(0.0, dial.times(), address=("2001:db8::1", 443), is_proxied=False)
    assert json.loads(told)["address"] == "[2001:db8::1]:443"
