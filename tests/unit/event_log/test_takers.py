"""The takers of a type: an index that agrees with the endpoints themselves, and costs by its takers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pghookd.event_log.reading import takers
from pghookd.event_log.reading.takers import KNOWN_MAX, Takers
from pghookd.model.delivery import Endpoint

TYPES = st.sampled_from(
    ("order", "order_created", "order_updated", "webhook_x", "webhook_y", "webhook_", "web", "")
)
WANTED = st.one_of(TYPES, TYPES.map(lambda kind: kind + "*"), st.sampled_from(("*", "w*", "webhook_*", "o*")))


def endpoint(number, *event_types):
    return Endpoint(number, "s", 0, "https://a.example/", event_types, enabled=True, from_event_id=0)


@given(st.lists(st.lists(WANTED, max_size=4), min_size=1, max_size=6), TYPES)
def test_the_index_agrees_with_each_endpoint(wanted, kind):
    endpoints = [endpoint(number, *types) for number, types in enumerate(wanted)]
    index = Takers(endpoints)
    for _ in range(2):  # looked up, and remembered
        assert index.of(kind) == [each for each in endpoints if each.takes(kind)]


def test_one_endpoint_is_found_by_its_id_whatever_it_takes():
    index = Takers([endpoint(1, "a"), endpoint(2, "b")])
    assert [each.endpoint_id for each in index.only(2)] == [2]
    assert index.only(3) == []


def test_a_type_that_nobody_takes_asks_no_endpoint(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(Endpoint, "takes", refuse)
    index = Takers([endpoint(number, "product_created", "order_*") for number in range(100)])
    assert all(index.of(f"other_{n}") == [] for n in range(100))
    assert len(index.of("order_created")) == 100


def test_few_types_are_remembered_however_many_come():
    index = Takers([endpoint(1, "*")])
    for n in range(3 * KNOWN_MAX):
        assert index.of(f"type_{n}")
    assert len(index._known) <= takers.KNOWN_MAX
