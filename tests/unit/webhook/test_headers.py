"""Which header lines an endpoint may add: none that decides where a request ends or its sender."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.webhook import headers
from pghookd.webhook.envelope import StaticHead

# tests/component/webhook/test_options_of_endpoints.py holds the table against the sender: both refuse the same.
FIT = [
    "Authorization",
    "x-api-key",
    "X_Tenant",
    "x",
    "idempotency-key",
    "a!#$%&'*+.^_`|~9",
    "x-webhooks",
    "hosts",
]
UNFIT = [
    "", " ", "a b", "a:", "X:Y", "a\r\nb", "a\x00", "é", "x" * 101, "(x)", "a,b", 'a"b', "a\\b",
    "host", "Host", "Content-Length", "content_length", "CONTENT-TYPE", "content-encoding", "Transfer-Encoding",
    "transfer_encoding", "connection", "te", "trailer", "upgrade", "expect", "keep-alive", "http2-settings",
    "proxy-authorization", "webhook-id", "Webhook-Signature", "webhook_signature", "x-webhook-topic",
    "X-Webhook-Anything", "user-agent", "accept", "accept-encoding", "cookie", "forwarded", "via",
    "x-forwarded-for", "x-real-ip", "metadata-flavor", "x-aws-ec2-metadata-token",
]  # fmt: skip
FIT_VALUES = ["1", "Bearer abc=", 'a "b" \\ c', "~", "a" * 3000]
UNFIT_VALUES = ["", " ", " a", "a ", "a\r\nx: y", "a\nb", "a\x00b", "\t", "é", "a\x7f", "\x80"]


def test_names_that_may_be_sent():
    for name in FIT:
        assert headers.static_lines([(name, "1")]) == name.encode() + b": 1\r\n"


def test_names_that_may_not():
    for name in UNFIT:
        with pytest.raises(ValueError, match="header"):
            StaticHead.of("agent", None, [(name, "1")])


def test_values_that_may_not_be_sent_and_are_not_quoted():
    for value in UNFIT_VALUES:
        with pytest.raises(
            ValueError, match="the header x-key is not printable ASCII without blanks around it"
        ):
            headers.static_lines([("x-key", value)])


def test_there_is_a_bound_and_each_name_is_there_once():
    headers.static_lines([(f"x-{n}", "1") for n in range(headers.COUNT_MAX)])
    for lines in (
        [(f"x-{n}", "1") for n in range(headers.COUNT_MAX + 1)],
        [("x-a", "1"), ("X-A", "2")],
        [("x-a", "1" * 3000), ("x-b", "1" * 3000)],
    ):
        with pytest.raises(ValueError, match=r"headers are|more than|twice"):
            headers.static_lines(lines)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=3))
def test_each_accepted_header_is_one_line(lines):
    try:
        made = headers.static_lines(lines)
    except ValueError:
        return
    assert re.fullmatch(rb"(?:[!-9;-~]+: [ -~]+\r\n)*", made)
    assert made.count(b"\r\n") == len(lines)


def test_profiles_may_use_our_prefix_but_not_our_names():
    assert headers.check_name("x-webhook-signature", of_profile=True)
    for name in ("x-webhook-topic", "X_Webhook_Source", "webhook-id", "content-length", "host"):
        with pytest.raises(ValueError, match="may not be set"):
            headers.check_name(name, of_profile=True)
