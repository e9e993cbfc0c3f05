"""A Postgres in memory, as far as the daemon's queries reach: xids, snapshots, commits in any order, lost sessions.

Answers by the name of the query. Each statement takes effect at one moment between being sent and being answered; what
a transaction wrote is seen by others when it commits. It must never know what the daemon does with the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools

import orjson

from pghookd.event_log.position import Snapshot
from pghookd.model.delivery_states import NOT_LOST
from pghookd.postgres.client import DatabaseAway, DatabaseError, query

EPOCH_US = 1_700_000_000_000_000
WRITES = frozenset(
    {
        "record_attempts",
        "put_backlog",
        "put_dead",
        "clear_backlog",
        "disable_endpoints",
        "note_failures",
        "note_successes",
        "store_positions",
        "hold_backlog",
        "walk_lines",
        "place_in_line",
        "expire_held",
        "advance_replay",
    }
)
READS = frozenset(
    {
        "read_new_events",
        "read_events_page",
        "skim_events",
        "find_first_event",
        "read_newest_event_id",
        "read_settled",
        "read_settled_events",
        "read_events",
        "read_endpoints",
        "read_endpoints_of_sites",
        "read_due",
        "read_line",
        "read_parked",
        "find_endpoints_with_rows",
        "find_parked_endpoints",
        "read_shards",
        "read_watched",
        "find_replays",
        "load_payload",
        "find_firsts",
        "find_firsts_again",
        "find_superseded",
    }
)
ASKED_TO_THE_END = frozenset({"exhausted", "too_old", "aborted"})  # what died so replaces older ones still
STATES_FROM = frozenset({"attempts", "backlog", "dead"})
# The first line of each is its own; the reader puts other numbers further down.
LOCK = query("lock_shard").partition("\n")[0]
NAMES = {query(name).partition("\n")[0]: name for name in READS | WRITES}
NAMES[LOCK] = "lock_shard"


EVENT_COLUMNS = ("event_id", "site_id", "type", "created_at", "endpoint_id")
PLACES = {name: at for at, name in enumerate(("snapshot", "in_recovery", "newest"))}
EVENT_PLACES = {name: at for at, name in enumerate(EVENT_COLUMNS)}


class NewEvent(tuple):
    """A row of read_new_events, asked for by position, by slice and by name."""

    __slots__ = ()

    def __getitem__(self, key):
        return tuple.__getitem__(self, PLACES[key] if isinstance(key, str) else key)


class PageEvent(tuple):
    """A row of read_events_page, asked for in the same ways."""

    __slots__ = ()

    def __getitem__(self, key):
        return tuple.__getitem__(self, EVENT_PLACES[key] if isinstance(key, str) else key)


@dataclasses.dataclass
class Stored:
    """One row of `events`."""

    xid: int
    event_id: int
    site_id: str
    key: str | None
    created_at: int
    drawn_at: float
    committed_at: float | None = None
    type: str = "order_created"
    dedupe_key: str | None = None
    supersede_key: str | None = None
    deliver_after: int | None = None
    deliver_before: int | None = None
    is_too_large: bool = False

    @property
    def payload(self):
        return None if self.is_too_large else b"{}"

    def options(self, now_us):
        told = {
            "ordering_key": self.key,
            "dedupe_key": self.dedupe_key,
            "supersede_key": self.supersede_key,
            "deliver_after": None if self.deliver_after is None else self.deliver_after / 1e6,
            "deliver_before": None if self.deliver_before is None else self.deliver_before / 1e6,
        }
        if self.is_too_large:
            told["payload_bytes"] = 10**6
        told = {name: value for name, value in told.items() if value is not None}
        if self.deliver_after is not None and self.deliver_after > now_us:
            told["wait_s"] = (self.deliver_after - now_us) / 1e6
        return orjson.dumps(told).decode() if told else None

    def columns(self, now_us):
        options = self.options(now_us)
        return (self.event_id, self.site_id, self.type, self.created_at, None, self.payload, options)

    def can_go(self, now_us):
        """Return True if nothing in the event itself keeps it from being delivered now."""
        return (
            " " not in self.type
            and not self.is_too_large
            and (self.deliver_after is None or self.deliver_after <= now_us)
            and (self.deliver_before is None or self.deliver_before > now_us)
        )


@dataclasses.dataclass
class Transaction:
    """The rows that one has written; None: the row is gone."""

    xid: int
    rows: dict = dataclasses.field(default_factory=dict)


class Database:
    """The state that would survive a crash of the daemon."""

    def __init__(self, loop, shards):
        self.loop = loop
        self.shards = shards
        self.last_value = 0
        self.next_xid = 700
        self.completed = 699
        self.durable = 699
        self.running = {}
        self.events = {}
        self.endpoints = {}
        self.rows = {("shards", n): None for n in range(shards)}
        self.table = {"attempts": {}, "backlog": {}, "dead": {}, "replays": {}}
        self.bells = set()  # events to be set when there is news
        self.owner = None  # the session that has the locks of all shards
        self.switched = lambda _endpoint_id: None
        self.superseding = lambda _event_id, _endpoint_id: None  # called when a delivery dies so
        self.delivered = set()  # deliveries with such an attempt
        self.moved = lambda _key, _before, _state, _reason: (
            None
        )  # called when a delivery has changed its state

    def now_us(self):
        return EPOCH_US + int(self.loop.time() * 1e6)

    # Transactions

    def begin(self):
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        begun = self.running[xid] = Transaction(xid)
        return begun

    def end(self, transaction, *, commit):
        if self.running.get(transaction.xid) is not transaction:
            return False
        del self.running[transaction.xid]
        self.completed = max(self.completed, transaction.xid)
        if commit:
            self.durable = max(self.durable, transaction.xid)
            with self._watching({key[:2] for table, key in transaction.rows if table in STATES_FROM}):
                self._apply(transaction)
        return True

    def _apply(self, transaction):
        for (table, key), row in transaction.rows.items():
            if row is None:
                self.table[table].pop(key, None)
            elif table == "endpoints":
                self.endpoints[key]["enabled"] = row["enabled"]
                self.switched(key)
            elif table == "shards":
                self.rows["shards", key] = row
            else:
                self.table[table][key] = row
            if table == "attempts" and row["outcome"] == "delivered":
                self.delivered.add(key[:2])

    @contextlib.contextmanager
    def _watching(self, keys):
        """Report the deliveries whose state or reason the body changes."""
        before = {key: self._state(key) for key in keys}
        yield
        for key, (state, reason) in before.items():
            if (after := self._state(key)) != (state, reason):
                self.moved(key, state, *after)

    def _state(self, key):
        """Return the state and the reason of a delivery, as the view `deliveries` has them; None if it has no row."""
        if (row := self.table["backlog"].get(key)) is not None:
            return row["state"], row["reason"]
        if (row := self.table["dead"].get(key)) is not None:
            return "dead", row["reason"]
        return ("delivered" if key in self.delivered else None), None

    def commit_events(self, transaction, events):
        if not self.end(transaction, commit=True):
            return
        for event in events:
            event.committed_at = self.loop.time()
            self.events[event.event_id] = event
        for bell in self.bells:
            bell.set()

    def restart(self):
        """Forget running transactions; xids that left no trace are handed out again."""
        self.running.clear()
        self.completed = self.durable
        self.next_xid = self.durable + 1
        self.last_value += 3  # ids that were fetched ahead are gone

    def lock(self, session):
        """Give a session the locks, unless another one has them that has not been silent for too long."""
        if self.owner is not None and self.owner is not session:
            self.owner.end_if_silent()
        if self.owner is None:
            self.owner = session
        return self.owner is session

    def draw(self):
        self.last_value += 1
        return self.last_value

    def snapshot(self):
        upper = self.completed + 1
        running = tuple(sorted(xid for xid in self.running if xid < upper))
        return (running[0] if running else upper, upper, running)

    def row(self, transaction, table, key):
        if (table, key) in transaction.rows:
            return transaction.rows[table, key]
        return self.table[table].get(key)

    def enabled(self, transaction, endpoint_id):
        row = transaction.rows.get(("endpoints", endpoint_id))
        return self.endpoints[endpoint_id]["enabled"] if row is None else row["enabled"]

    # Reading

    def read_new_events(self, since, floor, front, page):
        now = self.snapshot()
        ended = set(since.xips) - set(now[2])
        old, new = [], []
        for event in self.events.values():
            if event.event_id > front and event.xid >= since.xmax:
                new.append(event)
            if event.event_id > floor and event.xid in ended:
                old.append(event)
        head = (now, False, self.last_value or 1)
        found = [
            NewEvent((*head, *event.columns(self.now_us())))
            for branch in (new, old)
            for event in sorted(branch, key=lambda e: e.xid)[: page + 1]
        ]
        return found or [NewEvent((*head, *[None] * 7))]

    def read_events_page(self, since, upto, last, newest, page, only, _shards, bare):
        found = [
            PageEvent(
                (*event.columns(self.now_us())[:5], None, None)
                if event.site_id in bare
                else event.columns(self.now_us())
            )
            for event in self.events.values()
            if last < event.event_id <= newest
            and visible(event.xid, upto)
            and not visible(event.xid, since)
            and (only is None or self.shard_of(event.site_id) in only)
        ]
        return sorted(found)[:page]

    def skim_events(self, since, upto, last, newest, page, only, shards):
        groups = {}
        events = self.read_events_page(since, upto, last, newest, page, only, shards, ())
        for event_id, site_id, kind, _, endpoint_id, *_ in events:
            groups.setdefault((site_id, kind, endpoint_id), []).append(event_id)
        return [(*key, event_ids) for key, event_ids in groups.items()]

    def find_first_event(self, since, upto, floor, front):
        ended = set(since.xips) - set(upto.xips)
        ids = [e.event_id for e in self.events.values() if e.event_id > floor and e.xid in ended]
        return [(min([front, *(i - 1 for i in ids)]),)]

    def read_newest_event_id(self):
        return [(self.last_value,)]

    def read_settled(self, first, last, most):
        done = [(e, p) for (e, p, _), row in self.table["attempts"].items() if row["outcome"] == "delivered"]
        keys = (*done, *self.table["backlog"], *self.table["dead"])
        return [key for key in keys if first <= key[0] <= last][:most]

    def read_settled_events(self, event_ids, first, last, after, upto):
        found = self.read_settled(first, last, None)
        return [key for key in found if key[0] in event_ids and after < key[1] <= upto]

    def read_events(self, event_ids, _first, _last):
        now_us = self.now_us()
        return sorted(PageEvent(self.events[number].columns(now_us)) for number in event_ids)

    def shard_of(self, site_id):
        return int(site_id[1:]) % self.shards

    def _endpoint(self, row):
        return {**row, "shard": self.shard_of(row["site_id"])}

    def read_endpoints(self, ids, _shards):
        return [self._endpoint(self.endpoints[i]) for i in ids if i in self.endpoints]

    def read_endpoints_of_sites(self, sites, _shards, after, upto, most):
        found = []
        for span in zip(sites, after, upto, strict=True):
            found += [row for row in self.endpoints.values() if _is_in(row, *span)][:most]
        return [self._endpoint(row) for row in found]

    def _full(self, row):
        event = self.events.get(row["event_id"])
        return {
            **row,
            "type": event.type,
            "created_at": event.created_at,
            "only_endpoint_id": None,
            "exists": True,
            "payload": event.payload,
            "payload_bytes": None if event.payload is None else len(event.payload),
            "options": event.options(self.now_us()),
        }

    def read_due(self, at, event_id, endpoint_id, page):
        now = self.now_us()
        due = sorted(
            (row["next_attempt_at"], *key)
            for key, row in self.table["backlog"].items()
            if row["state"] == "waiting" and row["next_attempt_at"] <= now
        )
        after = [key for key in due if key > (at, event_id, endpoint_id)]
        return [self._full(self.table["backlog"][key[1:]]) for key in after[:page]]

    def _of(self, endpoint_id):
        rows = (row for row in self.table["backlog"].values() if row["endpoint_id"] == endpoint_id)
        return sorted(rows, key=lambda row: row["event_id"])

    def read_line(self, endpoint_id, line, page):
        now = self.now_us()
        found = []
        for row in [row for row in self._of(endpoint_id) if row["line"] == line][:page]:
            waits = row["state"] == "waiting"
            due = not waits or row["next_attempt_at"] <= now
            released = row["released_at"] if waits else now
            found.append({**self._full(row), "due": due, "released_at": released})
        return found

    def read_parked(self, endpoint_id, after, page):
        if not self.endpoints[endpoint_id]["enabled"]:
            return []
        rows = [r for r in self._of(endpoint_id) if r["event_id"] > after and r["state"] != "waiting"]
        return [{**self._full(row), "released_at": self.now_us()} for row in rows[:page]]

    def find_endpoints_with_rows(self, endpoint_ids):
        have = {key[1] for key in self.table["backlog"]}
        return [{"endpoint_id": endpoint_id} for endpoint_id in endpoint_ids if endpoint_id in have]

    def find_parked_endpoints(self, after, page, _shards):
        found = []
        for endpoint_id in sorted({key[1] for key in self.table["backlog"]}):
            if endpoint_id > after:
                aside = [row["reason"] for row in self._of(endpoint_id) if row["state"] != "waiting"] or [
                    None
                ]
                endpoint = self.endpoints[endpoint_id]
                found.append(
                    {
                        "endpoint_id": endpoint_id,
                        "enabled": endpoint["enabled"],
                        "ordered": endpoint["options"] is not None,
                        "reason": aside[0],
                        "newest_reason": aside[-1],
                        "shard": self.shard_of(endpoint["site_id"]),
                    }
                )
        return found[:page]

    def read_shards(self):
        nothing = dict.fromkeys(
            ("snapshot", "upto", "last_event_id", "mark_event_id", "mark_xid", "system_identifier"), None
        )
        nothing |= {"database_oid": None, "timeline": None, "floor": 0, "front": 0}
        return [{**nothing, "shard": n, **(self.rows["shards", n] or {})} for n in range(self.shards)]

    def load_payload(self, event_id, bytes_max):
        payload = self.events[event_id].payload
        size = bytes_max + 1 if payload is None else len(payload)
        return [{"payload": payload, "bytes": size}]

    def read_watched(self):
        return []

    def find_replays(self):
        rows = self.table["replays"].items()
        return [{"replay_id": i, "rate_per_s": row["rate_per_s"]} for i, row in rows if not row["ended"]]

    # Keys of events

    def _of_dedupe_key(self, site_id, key, least, greatest, upto):
        return [
            event
            for _, event in sorted(self.events.items())
            if (event.site_id, event.dedupe_key) == (site_id, key)
            and least <= event.event_id <= greatest
            and visible(event.xid, upto)
        ]

    def find_firsts(self, sites, keys, froms, tos, _least, _greatest, since, upto):
        found = []
        for n, asked in enumerate(zip(sites, keys, froms, tos, strict=True), 1):
            events = self._of_dedupe_key(*asked, upto)
            if events:
                is_old = any(visible(event.xid, since) for event in events)
                found.append({"n": n, "first_event_id": 0 if is_old else events[0].event_id})
        return found

    def find_firsts_again(self, sites, keys, froms, tos, _least, _greatest, since, upto, most):
        taken, others = self.taken_for_firsts(), self.taken_for_duplicates()
        found = []
        for n, asked in enumerate(zip(sites, keys, froms, tos, strict=True), 1):
            events = self._of_dedupe_key(*asked, upto)
            if any(visible(event.xid, since) for event in events):
                found.append({"n": n, "first_event_id": 0})
            elif events:
                ids = [event.event_id for event in events[:most]]
                first = min(ids, key=lambda i: (i not in taken, i in others, i))
                found.append({"n": n, "first_event_id": None if first in others - taken else first})
        return found

    def taken_for_firsts(self):
        """Return the events of which a row says otherwise than duplicate."""
        dead = {key[0] for key, row in self.table["dead"].items() if row["reason"] != "duplicate"}
        return dead | {key[0] for key in (*self.table["attempts"], *self.table["backlog"])}

    def taken_for_duplicates(self):
        return {key[0] for key, row in self.table["dead"].items() if row["reason"] == "duplicate"}

    def find_superseded(self, endpoints, sites, keys, afters, _least, most, _bytes, _days):
        found = []
        for n, (endpoint_id, site_id, key, after) in enumerate(
            zip(endpoints, sites, keys, afters, strict=True), 1
        ):
            newer = [
                event
                for _, event in sorted(self.events.items(), reverse=True)
                if (event.site_id, event.supersede_key) == (site_id, key) and event.event_id > after
            ]
            newest = next((e for e in newer[:most] if self.replaces(e, endpoint_id)), None)
            if newest is not None:
                found.append({"n": n, "newest_event_id": newest.event_id})
        return found

    def replaces(self, event, endpoint_id):
        """Return True if an event may replace older ones of its supersede_key at an endpoint."""
        sent = [key for key in self.table["attempts"] if key[:2] == (event.event_id, endpoint_id)]
        if not event.can_go(self.now_us()) and not (sent and event.can_go(event.created_at)):
            return False
        row = self.table["dead"].get((event.event_id, endpoint_id))
        if row is not None and row["reason"] not in ASKED_TO_THE_END:
            return False
        if event.dedupe_key is None or event.event_id in self.taken_for_firsts():
            return True
        return not any(
            (other.site_id, other.dedupe_key) == (event.site_id, event.dedupe_key) and other is not event
            for other in self.events.values()
        )

    def cancel(self, key):
        """Do what webhooks.cancel does with one delivery, unless a transaction has its row: it would wait."""
        if any(("backlog", key) in begun.rows for begun in self.running.values()):
            return
        with self._watching([key]):
            if self.table["backlog"].pop(key, None) is not None:
                self.table["dead"][key] = {"reason": "cancelled"}

    # Writing

    def record_attempts(self, transaction, *columns):
        numbers = [orjson.loads(f"[{text[1:-1]}]") for text in columns[:7]]
        rows = itertools.zip_longest(*numbers, *columns[7:12], columns[12] or ())  # as unnest does
        for event_id, endpoint_id, attempt, _, _, status, revision, outcome, *_, cause, evidence in rows:
            key = (event_id, endpoint_id, attempt)
            if self.row(transaction, "attempts", key) is None:
                transaction.rows["attempts", key] = {
                    "outcome": outcome,
                    "status": status,
                    "revision": revision,
                    "cause": cause,
                    "evidence": evidence,
                }
        return []

    def put_backlog(self, transaction, *columns):
        now = self.now_us()
        for event_id, endpoint_id, site_id, state, reason, attempts, wait_s, line, spared, cause in zip(
            *columns, strict=True
        ):
            key = (event_id, endpoint_id)
            if (self.row(transaction, "dead", key) or {}).get("reason") == "cancelled":
                continue
            before = self.row(transaction, "backlog", key)
            if not self.enabled(transaction, endpoint_id):
                state, reason = "held", "disabled"  # noqa: PLW2901 - as the statement says it
            elif reason == "disabled":
                state, reason = "waiting", "queued"  # noqa: PLW2901 - as the statement says it
            released = before["released_at"] if before else None
            if before and before["state"] != "waiting" and state == "waiting":
                released = now
            transaction.rows["backlog", key] = {
                "event_id": event_id,
                "endpoint_id": endpoint_id,
                "site_id": site_id,
                "state": state,
                "reason": reason,
                "attempts": max(attempts, before["attempts"]) if before else attempts,
                "next_attempt_at": now + int((wait_s or 0) * 1e6) if state == "waiting" else None,
                "released_at": released,
                "attempts_before": max(spared, before["attempts_before"]) if before else spared,
                "line": before["line"] if line is None and before else line,
                "cause": cause,
            }
        return []

    def put_dead(self, transaction, *columns):
        for event_id, endpoint_id, _, reason, _ in zip(*columns, strict=True):
            if reason == "superseded":
                self.superseding(event_id, endpoint_id)
            if self.row(transaction, "dead", (event_id, endpoint_id)) is None:
                transaction.rows["dead", (event_id, endpoint_id)] = {"reason": reason}
        return []

    def clear_backlog(self, transaction, *columns):
        for key in zip(*columns, strict=True):
            transaction.rows["backlog", key] = None
        return []

    def disable_endpoints(self, transaction, ids, reasons):
        off = [(i, reason) for i, reason in zip(ids, reasons, strict=True) if self.enabled(transaction, i)]
        for endpoint_id, _ in off:
            transaction.rows["endpoints", endpoint_id] = {"enabled": False}
        return [
            {"endpoint_id": i, "site_id": self.endpoints[i]["site_id"], "disabled_reason": r, "locked": False}
            for i, r in off
        ]

    def note_failures(self, _transaction, ids, *_):
        return [{"endpoint_id": i, "last_failure_at": self.now_us()} for i in ids]

    def note_successes(self, _transaction, *_):
        return []

    def store_positions(self, transaction, numbers, *columns):
        *columns, newest, system, oid, timeline = columns
        for number, snapshot, upto, last, floor, front in zip(numbers, *columns, strict=True):
            transaction.rows["shards", number] = {
                "snapshot": snapshot,
                "upto": upto,
                "last_event_id": last,
                "floor": floor,
                "front": front,
                "mark_event_id": newest,
                "mark_xid": transaction.xid,
                "system_identifier": system,
                "database_oid": oid,
                "timeline": timeline,
            }
        return [(transaction.xid,)]

    def hold_backlog(self, transaction, endpoint_id, after, page):
        if self.endpoints[endpoint_id]["enabled"]:
            return [(None,)]
        rows = [row for row in self._of(endpoint_id) if row["event_id"] > after][:page]
        for row in rows:
            if row["state"] != "held":
                held = {**row, "state": "held", "reason": "disabled", "next_attempt_at": None}
                transaction.rows["backlog", (row["event_id"], endpoint_id)] = held
        return [(rows[-1]["event_id"] if rows else None,)]

    def walk_lines(self, transaction, endpoint_id, after, page):
        rows = [row for row in self._of(endpoint_id) if row["event_id"] > after][:page]
        for row in rows:
            self._place(transaction, row)
        names = {row["line"] or self.events[row["event_id"]].key or "" for row in rows}
        return [{"last_event_id": rows[-1]["event_id"] if rows else None, "lines": sorted(names)}]

    def place_in_line(self, transaction, events, endpoints):
        found = []
        for key in zip(events, endpoints, strict=True):
            row = self.table["backlog"].get(key)
            if row is not None:
                found.append({"endpoint_id": key[1], "line": self._place(transaction, row)})
        return found

    def _place(self, transaction, row):
        if row["line"] is not None:
            return row["line"]
        line = self.events[row["event_id"]].key or ""
        transaction.rows["backlog", (row["event_id"], row["endpoint_id"])] = {**row, "line": line}
        return line

    def expire_held(self, _transaction, *_):
        return []

    # Replays

    def start_replay(self, states, rate_per_s, last_event_id):
        """Start an operator's replay: deliveries in these states go out once more, up to an event."""
        row = {"states": states, "rate_per_s": rate_per_s, "last_event_id": last_event_id}
        self.table["replays"][len(self.table["replays"]) + 1] = {
            **row,
            "after": (0, 0),
            "taken": (),
            "ended": False,
        }

    def advance_replay(self, transaction, replay_id, looks, most):
        replay = self.table["replays"][replay_id]
        if replay["ended"]:
            return []
        found = self._replayed(replay)
        page = found[: min(looks, most)]
        now = self.now_us()
        for key, attempts in page:
            event_id, endpoint_id = key
            transaction.rows["backlog", key] = {
                "event_id": event_id,
                "endpoint_id": endpoint_id,
                "site_id": self.events[event_id].site_id,
                "state": "waiting",
                "reason": "replay",
                "attempts": attempts,
                "attempts_before": attempts,
                "next_attempt_at": now,
                "released_at": now,
                "line": None,
                "cause": "replay",
            }
            transaction.rows["dead", key] = None
        ended = len(page) == len(found)
        after = page[-1][0] if page else replay["after"]
        taken = (*replay["taken"], *page)
        transaction.rows["replays", replay_id] = {**replay, "after": after, "taken": taken, "ended": ended}
        return [{"taken": len(page), "ended": ended}]

    def _replayed(self, replay):
        """Return what a replay has still to take, and the attempts of each."""
        table = self.table
        attempts, delivered = {}, set()
        for (event_id, endpoint_id, number), row in table["attempts"].items():
            key = (event_id, endpoint_id)
            attempts[key] = max(number, attempts.get(key, 0))
            if row["outcome"] == "delivered":
                delivered.add(key)
        lost = {key for key, row in table["dead"].items() if row["reason"] not in NOT_LOST}
        keys = lost if "dead" in replay["states"] else set()
        keys |= delivered - table["dead"].keys() if "delivered" in replay["states"] else set()
        return sorted(
            (key, attempts.get(key, 0))
            for key in keys - table["backlog"].keys()
            if key > replay["after"]
            and key[0] <= replay["last_event_id"]
            and self.endpoints[key[1]]["enabled"]
        )


def _is_in(row, site_id, after, upto):
    return row["site_id"] == site_id and after < row["endpoint_id"] <= upto


def visible(xid, snapshot):
    """Return True if a snapshot sees the rows of a committed transaction."""
    return xid < snapshot.xmin or (xid < snapshot.xmax and xid not in snapshot.xips)


class MemorySession:
    """One connection; duck-types `edge.postgres.Session`.

    Args:
        lease_s: after which the server ends it, where it is silent for so long.
    """

    def __init__(self, database, rng, trouble, lease_s=float("inf")):
        self._lease_s = lease_s
        self._asked_at = database.loop.time()
        self._database = database
        self._rng = rng
        self._trouble = trouble
        self._lock = asyncio.Lock()
        self._transaction = None
        self.closed = False
        self.lost = lambda: None  # called when it ends, for any reason

    async def fetch(self, sql, *args, timeout_s=None):  # noqa: ARG002 - nothing here takes longer
        async with self._lock:
            await self._travel()
            name = NAMES.get(sql.partition("\n")[0], sql)
            rows = await self._answer(name, args)
            await self._travel()
            return rows

    execute = fetch

    async def fetchrow(self, sql, *args, timeout_s=None):  # noqa: ARG002 - nothing here takes longer
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql, *args, timeout_s=None):  # noqa: ARG002 - nothing here takes longer
        rows = await self.fetch(sql, *args)
        return rows[0][0] if rows else None

    async def _travel(self):
        wait_s = self._trouble.travel_s(self._rng)
        if wait_s:
            await asyncio.sleep(wait_s)
        if self.closed:
            raise DatabaseAway("gone")

    async def _answer(self, name, args):
        self.end_if_silent()
        if self.closed:
            raise DatabaseAway("silent for too long")
        self._asked_at = self._database.loop.time()
        if name == "lock_shard":
            return [(self._database.lock(self),)]
        if name in {"begin", "commit", "rollback", "select 1", "select pg_current_snapshot()"}:
            return self._control(name)
        if self._trouble.refuses(self._rng, name):
            raise DatabaseError("55P03", "refused")
        work = getattr(self._database, name)
        if name not in WRITES:
            return work(*args)
        if self._transaction is not None:
            return work(self._transaction, *args)
        own = self._database.begin()  # a transaction of its own, that ends a little after it began
        try:
            rows = work(own, *args)
            if self._rng.random() < 0.2:
                await asyncio.sleep(self._rng.random() * 0.01)
            if not self._database.end(own, commit=not self.closed):
                raise DatabaseAway("restarted")  # noqa: TRY301 - it ends as any loss does
        except BaseException:
            self._database.end(own, commit=False)
            raise
        return rows

    def _control(self, name):
        database = self._database
        if name == "begin":
            self._transaction = database.begin()
        elif name in {"commit", "rollback"}:
            transaction, self._transaction = self._transaction, None
            if not database.end(transaction, commit=name == "commit"):
                raise DatabaseAway("restarted")
        return [(database.snapshot() if "snapshot" in name else 1,)]

    @contextlib.asynccontextmanager
    async def transaction(self):
        await self.execute("begin")
        try:
            yield
        except DatabaseAway:
            raise
        except Exception:
            with contextlib.suppress(DatabaseAway, DatabaseError):
                await self.execute("rollback")
            raise
        except BaseException:
            self.terminate()
            raise
        await self.execute("commit")

    def end_if_silent(self):
        """End the session, as the server does, if it was silent for the lease."""
        if self._database.loop.time() - self._asked_at > self._lease_s:
            self.terminate()

    def terminate(self):
        if not self.closed:
            self.closed = True
            self.lost()
        if self._database.owner is self:
            self._database.owner = None
        if self._transaction is not None:
            self._database.end(self._transaction, commit=False)
            self._transaction = None


def snapshot_of(database):
    """Return a snapshot of now."""
    return Snapshot(*database.snapshot())
