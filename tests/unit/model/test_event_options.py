"""Options of events: read from one JSON text; a trace is passed on only if it is valid."""

from __future__ import annotations

from pghookd.model.delivery import Endpoint
from pghookd.model.event_options import read, trace_line

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


TRACES = [
    (f"00-{TRACE}-{PARENT}-01", True),
    (f"00-{TRACE}-{PARENT}-00", True),
    (f"01-{TRACE}-{PARENT}-01", True),
    (f"01-{TRACE}-{PARENT}-01-what.may=come", True),
    (f"00-{TRACE}-{PARENT}-01-more", False),
    (f"01-{TRACE}-{PARENT}-01more", False),
    (f"ff-{TRACE}-{PARENT}-01", False),
    (f"00-{'0' * 32}-{PARENT}-01", False),
    (f"00-{TRACE}-{'0' * 16}-01", False),
    (f"00-{TRACE.upper()}-{PARENT}-01", False),
    (f"00-{TRACE}-{PARENT}-01\n", False),
    (f"01-{TRACE}-{PARENT}-01-a\r\nx: y", False),
    (f"00-{TRACE}-{PARENT}", False),
    ("", False),
    ("\u0660" * 55, False),
]


def test_a_trace_is_passed_on_where_it_is_one():
    for value, passed in TRACES:
        assert trace_line(value) == (f"traceparent: {value}\r\n".encode() if passed else b"")


def test_times_become_microseconds_to_the_last_digit():
    found = read('{"deliver_after": 1764093009.123457, "deliver_before": 0, "wait_s": 2.5}')
    assert (found.deliver_after_us, found.deliver_before_us, found.wait_s) == (1764093009123457, 0, 2.5)
    assert (found.trace_line, found.dedupe_key, found.supersede_key) == (b"", None, None)


def test_what_is_not_said_is_nothing():
    found = read('{"supersede_key": "stock/1"}')
    assert (found.deliver_after_us, found.deliver_before_us, found.wait_s) == (0, None, 0.0)
    assert found.supersede_key == "stock/1"


TAKEN = [
    ("order_*", "order_created", True),
    ("order_*", "order_", True),
    ("order_*", "orders", False),
    ("order.*", "order_created", False),
    ("*_created", "order_created", False),
    ("order_*d", "order_created", False),
    ("order_**", "order_created", False),
    ("*", "order_created", True),
    ("*", "webhook_test", False),
    ("web*", "webhook_test", False),
    ("web*", "website_made", True),
    ("webhook_*", "webhook_test", True),
    ("webhook_test", "webhook_test", True),
]


def test_types_are_taken_by_name_or_by_how_they_begin():
    for wanted, event_type, taken in TAKEN:
        endpoint = Endpoint(1, "s", 0, "https://a.example/", ("other", wanted), enabled=True, from_event_id=0)
        assert endpoint.takes(event_type) is taken
