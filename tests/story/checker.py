"""The invariants that hold after any story, checked against the database and the receiver's own log.

    conservation       each event and endpoint that takes it: in exactly one state, and the state that was expected
    no false success   delivered only where the receiver had decided on a 2xx
    no phantom         an attempt with a status has an entry of the receiver with that number and status
    hidden sends       entries of the receiver without an attempt: at most what the faults explain
    numbering          attempts 1..n without a gap, starts in order; backlog and dead count as many
    integrity          one webhook-id and one body per event, whatever the repeat; the producer's bytes; the signature
    bounded repeats    2xx after the first one of a delivery: at most what the faults explain

The receiver is told endpoints apart by path: an endpoint's URL ends in a path of its own.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
from urllib.parse import urlsplit

from standardwebhooks.webhooks import Webhook

EXPECTED = """
select e.event_id, p.endpoint_id
from webhooks.events e join webhooks.endpoints p using (site_id)
where e.event_id > p.from_event_id and (e.endpoint_id is null or e.endpoint_id = p.endpoint_id)
  and webhooks.takes(p.event_types, e.type)
"""
STATES = """
select event_id, endpoint_id, state from webhooks.backlog
union all select event_id, endpoint_id, 'dead' from webhooks.dead
union all select distinct event_id, endpoint_id, 'delivered' from webhooks.attempts where outcome = 'delivered'
"""
ATTEMPTS = """
select event_id, endpoint_id, attempt, attempted_at, status, outcome from webhooks.attempts
order by event_id, endpoint_id, attempt
"""
COUNTS = """
select event_id, endpoint_id, attempts, state from webhooks.backlog
union all select event_id, endpoint_id, attempts, 'dead' from webhooks.dead
"""
EVENTS = "select event_id, webhooks.webhook_id(event_id, created_at) as webhook_id, payload::text from webhooks.events"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run came to, once everything agreed."""

    deliveries: int
    attempts: int
    received: int
    repeats: int  # 2xx after the first, of the same delivery
    hidden: int  # received, and no attempt row says so


async def check(db, entries, *, repeats_max, states=("delivered",)):
    """Hold the database against what was received; return the figures.

    Args:
        db: a connection.
        entries: what the receiver wrote, in order.
        repeats_max: how many repeats, and sends without a row, the faults of the run explain.
        states: the states that deliveries may be in at the end.
    """
    expected = {tuple(row) for row in await db.fetch(EXPECTED)}
    endpoints = await db.fetch("select endpoint_id, url, secret from webhooks.endpoints")
    attempts = collections.defaultdict(list)
    for row in await db.fetch(ATTEMPTS):
        attempts[row["event_id"], row["endpoint_id"]].append(row)
    paths = {urlsplit(row["url"]).path: row["endpoint_id"] for row in endpoints}
    received = collections.defaultdict(list)
    for entry in entries:
        received[_event_id(entry), paths[entry["path"]]].append(entry)
    assert received.keys() <= expected, "something reached an endpoint that it was not for"
    await _check_states(db, expected, states)
    _check_attempts(attempts, received)
    for row in await db.fetch(COUNTS):
        key = (row["event_id"], row["endpoint_id"])
        assert row["attempts"] == len(attempts[key]), (
            f"{key} has {len(attempts[key])} attempts, {row['state']} says {row}"
        )
    events = {row["event_id"]: row for row in await db.fetch(EVENTS)}
    secrets = {row["endpoint_id"]: row["secret"] for row in endpoints}
    _check_integrity(received, events, secrets)
    found = Found(
        deliveries=len(expected),
        attempts=sum(map(len, attempts.values())),
        received=len(entries),
        repeats=sum(max(0, sum(map(_is_2xx, each)) - 1) for each in received.values()),
        hidden=_hidden(attempts, received),
    )
    assert found.repeats <= repeats_max, f"more repeats than the faults explain: {found}"
    assert found.hidden <= repeats_max, f"more sends without a row than the faults explain: {found}"
    return found


async def _check_states(db, expected, states):
    stands = await db.fetch(STATES)
    per_delivery = collections.Counter((row["event_id"], row["endpoint_id"]) for row in stands)
    doubled = [key for key, count in per_delivery.items() if count > 1]
    assert not doubled, f"in two states at once: {doubled[:5]}"
    assert not (missing := expected - per_delivery.keys()), f"lost {len(missing)}: {sorted(missing)[:5]}"
    assert not (extra := per_delivery.keys() - expected), f"not expected: {sorted(extra)[:5]}"
    assert {row["state"] for row in stands} <= set(states)
    view = await db.fetch("select event_id, endpoint_id, state from webhooks.deliveries")
    assert sorted(map(tuple, view)) == sorted(map(tuple, stands)), "the view says something else"


def _check_attempts(attempts, received):
    for key, rows in attempts.items():
        numbers = [row["attempt"] for row in rows]
        assert numbers == list(range(1, len(rows) + 1)), f"{key} is numbered {numbers}"
        starts = [row["attempted_at"] for row in rows]
        assert starts == sorted(starts), f"{key} has starts out of order"
        entries = {(_attempt(entry), entry["status"]) for entry in received[key]}
        for row in rows:
            if row["status"] is not None:
                assert (row["attempt"], row["status"]) in entries, f"{key} has a phantom: {row}"
        for row in rows:
            assert (row["outcome"] == "delivered") == _is_2xx(row), f"{key} has a false outcome: {row}"
        delivered = sum(map(_is_2xx, rows))
        assert delivered <= 1, f"{key} went on after it was delivered"
        assert not delivered or any(map(_is_2xx, received[key])), f"{key} was never answered 2xx"


def _check_integrity(received, events, secrets):
    for (event_id, endpoint_id), entries in received.items():
        event = events[event_id]
        assert {entry["webhook-id"] for entry in entries} == {event["webhook_id"]}
        assert len({entry["sha256"] for entry in entries}) == 1, f"{event_id} came with different bytes"
        for entry in entries:
            if "body" in entry:
                _check_body(entry, event, secrets[endpoint_id])


def _check_body(entry, event, secret):
    body = base64.b64decode(entry["body"])
    data = body.partition(b',"data":')[2]
    assert data == event["payload"].encode() + b"}", (
        f"{entry['webhook-id']} has other bytes than the producer's"
    )
    if secret is None:
        assert entry["webhook-signature"] is None
        return
    head = {name: entry[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    Webhook(secret).verify(body, head)
    assert json.loads(body)["id"] == event["webhook_id"]


def _hidden(attempts, received):
    """Count the sends that no row speaks of: more entries with a number than rows with it."""
    hidden = 0
    for key, entries in received.items():
        rows = {row["attempt"] for row in attempts.get(key, ())}
        sent = collections.Counter(map(_attempt, entries))
        hidden += sum(count - (number in rows) for number, count in sent.items())
    return hidden


def _attempt(entry):
    return int(entry["x-webhook-attempt"])


def _event_id(entry):
    return int(entry["webhook-id"][4:18], 16)


def _is_2xx(entry):
    return entry["status"] is not None and 200 <= entry["status"] < 300
