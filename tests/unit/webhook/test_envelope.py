"""Identity, body and head of an event: the bytes are a contract, and nothing a customer wrote may forge a header."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.event_type import valid_type
from pghookd.webhook import envelope
from pghookd.webhook.envelope import StaticHead

EVENT_ID = 0x0009D600000001
CREATED_AT_US = 0x0660FA643BE000
TIMES = st.integers(-(2**63), 2**63 - 1)
AGENT = "pghookd/1.2 (+https://docs.example/webhooks)"


def head_of(source=None, agent=AGENT, **changes):
    values = {
        "webhook_id": envelope.webhook_id(EVENT_ID, CREATED_AT_US),
        "timestamp_s": 1764000000,
        "signature": b"v1,abc=",
        "event_type": "order_created",
        "attempt": 3,
        "triggered_at": envelope.timestamp_text(CREATED_AT_US),
        "body_bytes": 17,
    }
    return StaticHead.of(agent, source).head(**{**values, **changes})


def names_of(head):
    assert head.endswith(b"\r\n\r\n")
    return [line.partition(b": ")[0] for line in head[:-4].split(b"\r\n")]


def test_the_webhook_id_is_both_numbers_in_hex():
    assert envelope.webhook_id(EVENT_ID, CREATED_AT_US) == "evt_0009d6000000010660fa643be000"


def test_the_same_event_id_at_another_time_is_another_event():
    assert envelope.webhook_id(1, 1_000) != envelope.webhook_id(1, 1_001)


@given(st.integers(0, 2**53), TIMES)
def test_every_webhook_id_has_its_form_and_leads_back(event_id, created_at_us):
    text = envelope.webhook_id(event_id, created_at_us)
    assert re.fullmatch("evt_[0-9a-f]{28}", text)
    assert envelope.event_id_of(text) == event_id


def test_an_invalid_webhook_id_is_refused():
    for text in ["", "evt_", "evt_" + "0" * 27, "evt_" + "G" * 28, "EVT_" + "0" * 28, "7"]:
        with pytest.raises(ValueError, match="28 hex digits"):
            envelope.event_id_of(text)


TIMES = [
    (0, "1970-01-01T00:00:00.000Z"),
    (-1, "1970-01-01T00:00:00.000Z"),
    (-(2**63), "1970-01-01T00:00:00.000Z"),  # -infinity
    (999, "1970-01-01T00:00:00.000Z"),  # cut, not rounded
    (1_764_000_000_123_999, "2025-11-24T16:00:00.123Z"),
    (2**63 - 1, "4253-05-31T22:20:37.927Z"),  # infinity
]


def test_times_are_utc_in_milliseconds_and_clamped():
    for created_at_us, text in TIMES:
        assert envelope.timestamp_text(created_at_us) == text


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_are_what_datetime_says(created_at_us):
    expected = datetime.fromtimestamp(created_at_us // 1000 / 1000, UTC)
    assert (
        abs(datetime.fromisoformat(envelope.timestamp_text(created_at_us)) - expected).total_seconds() < 0.001
    )


def test_the_body_is_the_envelope_around_the_producers_own_bytes():
    payload = b'{ "b":1.10, "a" : [1 , 2],"a":"\\u00e9" }'
    body = envelope.body(EVENT_ID, "order_created", CREATED_AT_US, payload)
    assert body == (
        b'{"id":"evt_0009d6000000010660fa643be000","type":"order_created","timestamp":"'
        + envelope.timestamp_text(CREATED_AT_US).encode()
        + b'","data":{ "b":1.10, "a" : [1 , 2],"a":"\\u00e9" }}'
    )
    assert list(json.loads(body)) == ["id", "type", "timestamp", "data"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_json_survives(value):
    body = envelope.body(1, "a.b", 1, json.dumps(value).encode())
    assert json.loads(body)["data"] == value


def test_types():
    for event_type in ["a", "order_created", "order.created.v2", "A1_.b", "x" * 128]:
        assert valid_type(event_type)


def test_an_invalid_type_gets_into_neither_body_nor_head():
    for event_type in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\n",
        "a\r\nx: y",
        'a"',
        "é",
        "a-b",
        "x" * 129,
        "٣",
    ]:
        assert not valid_type(event_type)
        with pytest.raises(ValueError, match="not a valid event type"):
            envelope.body(1, event_type, 1, b"{}")
        with pytest.raises(ValueError, match="not a valid event type"):
            head_of(event_type=event_type)


def test_the_head_is_this_and_nothing_else():
    assert head_of("https://shop.example") == (
        b"content-type: application/json\r\n"
        b"user-agent: pghookd/1.2 (+https://docs.example/webhooks)\r\n"
        b"accept: */*\r\n"
        b"accept-encoding: identity\r\n"
        b"webhook-id: evt_0009d6000000010660fa643be000\r\n"
        b"webhook-timestamp: 1764000000\r\n"
        b"webhook-signature: v1,abc=\r\n"
        b"x-webhook-topic: order_created\r\n"
        b"x-webhook-source: https://shop.example\r\n"
        b"x-webhook-attempt: 3\r\n"
        b"x-webhook-triggered-at: " + envelope.timestamp_text(CREATED_AT_US).encode() + b"\r\n"
        b"content-length: 17\r\n\r\n"
    )


def test_without_a_secret_there_is_no_signature_line():
    assert b"webhook-signature" not in names_of(head_of(signature=None))
    assert b"webhook-timestamp" in names_of(head_of(signature=None))


def test_without_a_usable_source_there_is_no_source_line():
    for source in [None, "", "  ", "https://x.example/" + "é" * 700]:
        assert b"x-webhook-source" not in names_of(head_of(source))


SOURCES = [
    ("https://x.example/a b", b"https://x.example/a%20b"),
    ("https://x.example\r\nevil: 1", b"https://x.example%0D%0Aevil:%201"),
    ("https://bücher.example", b"https://b%C3%BCcher.example"),
    ("a\x00b", b"a%00b"),
]


def test_an_odd_source_is_percent_encoded():
    for source, sent in SOURCES:
        assert b"x-webhook-source: " + sent + b"\r\n" in head_of(source)


def test_an_endpoints_own_headers_come_after_ours():
    head = StaticHead.of(AGENT, "https://x.example", [("X-Key", "abc")]).head(
        webhook_id="evt_1", timestamp_s=1, signature=None, event_type="a", attempt=1, triggered_at="t",
        body_bytes=2, more=b"x-more: 1\r\n",
    )  # fmt: skip
    assert b"x-webhook-source: https://x.example\r\nX-Key: abc\r\nx-more: 1\r\nx-webhook-attempt: 1" in head


@given(st.text(), st.text())
def test_nothing_in_source_or_user_agent_adds_or_breaks_a_line(source, agent):
    head = head_of(source, agent)
    assert re.fullmatch(rb"(?:[\x20-\x7e]*\r\n)+", head)
    names = names_of(head)
    assert len(names) == len(set(names)) == 11 + (b"x-webhook-source" in names)
