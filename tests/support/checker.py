"""The invariants that hold after any story, checked against the database and the receiver's own log.

    conservation        each event and endpoint that takes it: in exactly one state, and nothing else
    termination         each has come to an end, and to one that was expected
    at_least_once       a delivered event has an entry of the receiver that decided on a 2xx
    no_false_success    an endpoint that never decided on a 2xx has nothing delivered
    no_phantom          an attempt with a status has an entry of the receiver with that number and status
    no_hidden_sends     entries of the receiver without an attempt: at most what the faults explain
    attempt_discipline  attempts 1..n without a gap, starts in order; backlog and dead count as many
    bounded_duplicates  2xx after the first one of a delivery: at most what the faults explain
    schedule            no attempt starts sooner after the one before than the schedule says
    exclusion           instances send one after another, each while it owns
    integrity           one webhook-id and one body per event, repeats included; the producer's bytes; the signature
    isolation           nothing reached an endpoint that it was not for
    wake_up             each event is first sent in time, even if notifications are lost

All of them are checked; the error names each that does not hold.

and, by `check_mails`, where owners are notified:

    mails agree        each mail that was taken is a row of the outbox, went to its owner alone, came once and, where a
                       fault explains a repeat, again with the same bytes; each that counts as sent was taken
    told once          no delivery is reported twice; all reported ones have failed; all given up were reported

The receiver tells endpoints apart by path: an endpoint's URL ends in a path of its own.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime as dt
import json
from urllib.parse import urlsplit

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

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
select event_id, endpoint_id, attempt, attempted_at, duration_ms, status, outcome from webhooks.attempts
order by event_id, endpoint_id, attempt
"""
COUNTS = """
select event_id, endpoint_id, attempts, state from webhooks.backlog
union all select event_id, endpoint_id, attempts, 'dead' from webhooks.dead
"""
EVENTS = """
select event_id, webhooks.webhook_id(event_id, created_at) as webhook_id, payload::text, created_at
from webhooks.events
"""
CLOCK_S = 0.005  # rows are rounded, and a wait is counted on another clock

MAILS = "select email_id, owner_email, kind, message_id, state, digest::text from webhooks.emails order by email_id"
OWNERS = """
select p.endpoint_id, lower(s.owner_email) as owner_email
from webhooks.endpoints p join webhooks.sites s using (site_id) where s.owner_email is not null
"""
# A mail may report a delivery once it has failed, or was not tried because its owner's filter is slow.
FAILED = """
select endpoint_id, event_id from webhooks.attempts where outcome not in ('delivered', 'failed')
union select endpoint_id, event_id from webhooks.backlog where reason = 'filter_slow'
"""
GIVEN_UP = """
select d.endpoint_id, d.event_id from webhooks.dead d
where d.reason in ('exhausted', 'too_old', 'blocked', 'aborted', 'too_large', 'invalid')
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """The figures of a run, once everything agreed."""

    deliveries: int
    attempts: int
    received: int
    repeats: int  # 2xx after the first, of the same delivery
    hidden: int  # received, and no attempt row says so


class BrokenError(AssertionError):
    """Checks do not hold.

    Attributes:
        checks: their names.
    """

    def __init__(self, findings):
        super().__init__("\n".join(f"{check}: {text}" for check, text in findings))
        self.checks = {check for check, _ in findings}


class Findings(list):
    """The checks that do not hold: (check, observation)."""

    def hold(self, check, holds, text):
        if not holds:
            self.append((check, text))

    def done(self):
        """Raise the findings, if any."""
        if self:
            raise BrokenError(self)


async def check(
    db, entries, *, repeats_max, states=("delivered",), waits_s=(), owners=(), awake_within_s=None
):
    """Compare the database with the received requests; return the figures.

    Args:
        db: a connection.
        entries: the receiver's entries, in order.
        repeats_max: how many repeats, and sends without a row, the faults of the run explain.
        states: the states that deliveries may be in at the end.
        waits_s: the least waits after failure 1, 2, ...; where given, nobody has requested an attempt at once.
        owners: the user agents of instances, in the order in which they owned.
        awake_within_s: within which an event's first request arrives; None: not checked.

    Raises:
        BrokenError: naming each check that does not hold.
    """
    findings = Findings()
    expected = {tuple(row) for row in await db.fetch(EXPECTED)}
    endpoints = await db.fetch("select endpoint_id, url, secret from webhooks.endpoints")
    attempts = collections.defaultdict(list)
    for row in await db.fetch(ATTEMPTS):
        attempts[row["event_id"], row["endpoint_id"]].append(row)
    paths = {urlsplit(row["url"]).path: row["endpoint_id"] for row in endpoints}
    received = collections.defaultdict(list)
    for entry in entries:
        received[_event_id(entry), paths[entry["path"]]].append(entry)
    strays = received.keys() - expected
    findings.hold("isolation", not strays, f"reached endpoints that it was not for: {sorted(strays)[:5]}")
    await _check_states(findings, db, expected, states)
    _check_attempts(findings, attempts, received)
    _check_answers(findings, attempts, received)
    for row in await db.fetch(COUNTS):
        key = (row["event_id"], row["endpoint_id"])
        findings.hold(
            "attempt_discipline",
            row["attempts"] == len(attempts[key]),
            f"{key} has {len(attempts[key])} attempts, {row['state']} says {row}",
        )
    events = {row["event_id"]: row for row in await db.fetch(EVENTS)}
    secrets = {row["endpoint_id"]: row["secret"] for row in endpoints}
    _check_integrity(findings, received, events, secrets)
    if waits_s:
        _check_schedule(findings, attempts, waits_s)
    _check_exclusion(findings, entries, owners)
    if awake_within_s is not None:
        _check_wake_up(findings, entries, events, awake_within_s)
    found = Found(
        deliveries=len(expected),
        attempts=sum(map(len, attempts.values())),
        received=len(entries),
        repeats=sum(max(0, sum(map(_is_2xx, each)) - 1) for each in received.values()),
        hidden=_hidden(attempts, received),
    )
    repeated, hidden = found.repeats <= repeats_max, found.hidden <= repeats_max
    findings.hold("bounded_duplicates", repeated, f"more repeats than the faults explain: {found}")
    findings.hold("no_hidden_sends", hidden, f"more sends without a row than the faults explain: {found}")
    findings.done()
    return found


@dataclasses.dataclass(frozen=True)
class Told:
    """The reports to owners, once everything agreed."""

    mails: int  # that the mail server took, repeats included
    repeats: int  # of them, mails that it had taken before
    deliveries: int  # reported as failed


async def check_mails(db, mails, *, repeats_max=0, under_way_max=0):
    """Compare the mails to owners with the failures; return the figures.

    Call it when nothing is left to report: no mail is queued, and of each endpoint that failed a mail has gone
    out since (a reminder, or that it works again). Nobody is muted or snoozed, and no mail has more sections than fit.

    Args:
        db: a connection.
        mails: the mails that the mail server took, in order (tests/support/mail_server.py).
        repeats_max: how many mails may have come again, by the faults of the run.
        under_way_max: how many deliveries of one endpoint had begun, and were not recorded, while a mail was made:
            their request is older than the mail's report and younger than the rows it has read, so no mail names them
            (later ones count them in the total of failures).
    """
    rows = await check_outbox(db, mails, repeats_max=repeats_max)
    states = collections.Counter(row["state"] for row in await db.fetch(MAILS))
    assert not states["queued"], f"mails are still to be sent: {states}"
    digests = [(row["owner_email"], json.loads(row["digest"])) for row in rows]
    failed, given_up = await _pairs(db, FAILED), await _pairs(db, GIVEN_UP)
    told = _check_told(digests, failed, given_up, await _owned(db), under_way_max)
    return Told(mails=len(mails), repeats=len(mails) - len(rows), deliveries=told)


async def check_outbox(db, mails, *, repeats_max=0):
    """Hold the outbox against what the mail server took (arguments as of `check_mails`); return the rows taken.

    Raises:
        BrokenError: `mails` does not hold.
    """
    findings = Findings()
    rows = {row["message_id"]: row for row in await db.fetch(MAILS) if row["message_id"] is not None}
    taken = collections.defaultdict(list)
    for mail in mails:
        taken[mail.message_id].append(mail)
    for message_id, copies in taken.items():
        if message_id in rows:
            _check_copies(findings, rows[message_id], copies)
        else:
            findings.hold("mails", holds=False, text=f"nobody meant to send {copies[0].subject}")
    unsent = [
        row["email_id"] for row in rows.values() if row["state"] == "sent" and row["message_id"] not in taken
    ]
    findings.hold("mails", not unsent, f"counted as sent, and never taken: {unsent}")
    repeats = len(mails) - len(taken)
    findings.hold("mails", repeats <= repeats_max, f"{repeats} mails came again")
    findings.done()
    return [rows[message_id] for message_id in taken]


def _check_copies(findings, row, copies):
    """Check one mail, as often as it was taken."""
    name = row["email_id"]
    findings.hold("mails", row["state"] == "sent", f"{name} was taken and is {row['state']}")
    same = len({mail.content for mail in copies}) == 1
    findings.hold("mails", same, f"{name} came again and said something else")
    for mail in copies:
        to, kind = mail.recipients, mail.message["X-Pghookd-Kind"]
        findings.hold("mails", to == [row["owner_email"]], f"{name} went to {to}")
        findings.hold("mails", kind == row["kind"], f"{name} calls itself {kind}")


async def _pairs(db, sql):
    found = collections.defaultdict(set)
    for row in await db.fetch(sql):
        found[row["endpoint_id"]].add(row["event_id"])
    return found


async def _owned(db):
    return {row["endpoint_id"]: row["owner_email"] for row in await db.fetch(OWNERS)}


def _check_told(digests, failed, given_up, owned, under_way_max):
    """Hold the sections of all mails against the deliveries of each endpoint; return how many are reported."""
    named, counted, cut = collections.defaultdict(list), collections.Counter(), set()
    for owner, digest in digests:
        for section in digest["sections"]:
            endpoint_id = section["endpoint_id"]
            assert owned.get(endpoint_id) == owner, f"{owner} was told of {endpoint_id}, which is not theirs"
            ids = [int(text[4:18], 16) for text in section["event_ids"]]
            count = sum(count for _, count in section["types"])
            named[endpoint_id] += ids
            counted[endpoint_id] += count
            if count > len(ids):  # more than a mail names one by one
                cut.add(endpoint_id)
    for endpoint_id, ids in named.items():
        twice = [event_id for event_id, count in collections.Counter(ids).items() if count > 1]
        assert not twice, f"told of twice, of endpoint {endpoint_id}: {twice[:5]}"
        assert set(ids) <= failed[endpoint_id], f"told of endpoint {endpoint_id}, and never failed"
        assert counted[endpoint_id] <= len(failed[endpoint_id]), f"more told of {endpoint_id} than failed"
    for endpoint_id in owned.keys() & given_up.keys():
        lost = given_up[endpoint_id]
        missing = len(lost) - counted[endpoint_id]
        assert missing <= under_way_max, f"{len(lost)} of {endpoint_id} were given up, {missing} not told of"
        if endpoint_id not in cut:
            untold = lost - set(named[endpoint_id])
            assert len(untold) <= under_way_max, f"given up, and nobody was told: {sorted(untold)[:5]}"
    return counted.total()


async def _check_states(findings, db, expected, states):
    stands = await db.fetch(STATES)
    per_delivery = collections.Counter((row["event_id"], row["endpoint_id"]) for row in stands)
    doubled = [key for key, count in per_delivery.items() if count > 1]
    missing, extra = expected - per_delivery.keys(), per_delivery.keys() - expected
    findings.hold("conservation", not doubled, f"in two states at once: {doubled[:5]}")
    findings.hold("conservation", not missing, f"lost {len(missing)}: {sorted(missing)[:5]}")
    findings.hold("conservation", not extra, f"not expected: {sorted(extra)[:5]}")
    unfit = {row["state"] for row in stands} - set(states)
    findings.hold("termination", not unfit, f"ended as {unfit}")
    findings.hold("termination", not missing, f"{len(missing)} have come to no end")
    view = await db.fetch("select event_id, endpoint_id, state from webhooks.deliveries")
    agrees = sorted(map(tuple, view)) == sorted(map(tuple, stands))
    findings.hold("conservation", agrees, "the view says something else")


def _check_attempts(findings, attempts, received):
    for key, rows in attempts.items():
        numbers = [row["attempt"] for row in rows]
        whole = numbers == list(range(1, len(rows) + 1))
        findings.hold("attempt_discipline", whole, f"{key} is numbered {numbers}")
        starts = [row["attempted_at"] for row in rows]
        findings.hold("attempt_discipline", starts == sorted(starts), f"{key} has starts out of order")
        entries = {(_attempt(entry), entry["status"]) for entry in received.get(key, ())}
        for row in rows:
            seen = row["status"] is None or (row["attempt"], row["status"]) in entries
            findings.hold("no_phantom", seen, f"{key} has a phantom: {row}")


def _check_answers(findings, attempts, received):
    """Check that deliveries recorded as delivered were taken, by an endpoint that takes anything at all."""
    taking = {key[1] for key, entries in received.items() if any(map(_is_2xx, entries))}
    for key, rows in attempts.items():
        for row in rows:
            true = (row["outcome"] == "delivered") == _is_2xx(row)
            findings.hold("no_false_success", true, f"{key} has a false outcome: {row}")
        delivered = sum(map(_is_2xx, rows))
        findings.hold("attempt_discipline", delivered <= 1, f"{key} went on after it was delivered")
        taken = any(map(_is_2xx, received.get(key, ())))
        findings.hold("at_least_once", taken or not delivered, f"{key} was never answered 2xx")
        took = key[1] in taking
        findings.hold("no_false_success", took or not delivered, f"endpoint {key[1]} never answered 2xx")


def _check_schedule(findings, attempts, waits_s):
    for key, rows in attempts.items():
        for before, row, wait_s in zip(rows, rows[1:], waits_s, strict=False):
            ended = before["attempted_at"] + dt.timedelta(milliseconds=before["duration_ms"])
            waited_s = (row["attempted_at"] - ended).total_seconds()
            early = f"{key} waited {waited_s} s before attempt {row['attempt']}"
            findings.hold("schedule", waited_s >= wait_s - CLOCK_S, early)


def _check_exclusion(findings, entries, owners):
    """Ask whether each instance's requests end before the next one's begin."""
    at = 0
    for entry in entries if owners else ():
        sender = owners.index(entry["user-agent"])
        late = f"{owners[sender]} sent {entry['webhook-id']} after {owners[at]} had taken over"
        findings.hold("exclusion", sender >= at, late)
        at = max(at, sender)


def _check_wake_up(findings, entries, events, within_s):
    first = {}
    for entry in entries:
        first.setdefault(_event_id(entry), entry["wall"])
    for event_id, event in events.items():
        waited_s = first.get(event_id, float("inf")) - event["created_at"].timestamp()
        findings.hold("wake_up", waited_s <= within_s, f"{event_id} was first sent after {waited_s} s")


def _check_integrity(findings, received, events, secrets):
    for (event_id, endpoint_id), entries in received.items():
        event = events.get(event_id)
        if event is None:  # reported as isolation
            continue
        ids = {entry["webhook-id"] for entry in entries}
        findings.hold("integrity", ids == {event["webhook_id"]}, f"{event_id} was called {ids}")
        bodies = {entry["sha256"] for entry in entries}
        findings.hold("integrity", len(bodies) == 1, f"{event_id} came with different bytes")
        for entry in entries:
            if "body" in entry:
                _check_body(findings, entry, event, secrets.get(endpoint_id))


def _check_body(findings, entry, event, secret):
    body = base64.b64decode(entry["body"])
    data, name = body.partition(b',"data":')[2], entry["webhook-id"]
    same = data == event["payload"].encode() + b"}"
    findings.hold("integrity", same, f"{name} has other bytes than the producer's")
    if secret is None:
        findings.hold("integrity", entry["webhook-signature"] is None, f"{name} is signed with nothing")
        return
    head = {name: entry[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    try:
        Webhook(secret).verify(body, head)
    except WebhookVerificationError as error:
        findings.append(("integrity", f"{name}: {error}"))
    named = json.loads(body)["id"]
    findings.hold("integrity", named == event["webhook_id"], f"{name} calls itself {named}")


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
