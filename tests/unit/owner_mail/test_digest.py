"""The contents of a mail: causes, the order of sections, the way through JSON, and texts of strangers."""

from __future__ import annotations

import dataclasses
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.delivery import Outcome
from pghookd.owner_mail import digest
from pghookd.owner_mail.digest import Cause, Digest, Kind, MailSection

SECTION = MailSection(
    kind=Kind.FAILING,
    endpoint_id=1,
    site_id="s",
    site_name="Shop",
    url="https://shop.example.com/hook",
    cause=Cause.TIMEOUT,
    since_us=1,
    last_failure_us=2,
    types=(("order_created", 2),),
    event_ids=("evt_1",),
)
CAUSES = [
    (Outcome.REFUSED, 301, "redirect: https://www.example.com", Cause.REDIRECT),
    (Outcome.REFUSED, 304, None, Cause.REDIRECT),
    (Outcome.REFUSED, 401, None, Cause.UNAUTHORIZED),
    (Outcome.REFUSED, 404, None, Cause.NOT_FOUND),
    (Outcome.REFUSED, 410, None, Cause.GONE),
    (Outcome.REFUSED, 429, None, Cause.THROTTLED),
    (Outcome.REFUSED, 422, None, Cause.CLIENT_ERROR),
    (Outcome.REFUSED, 503, None, Cause.THROTTLED),
    (Outcome.REFUSED, 500, None, Cause.SERVER_ERROR),
    (Outcome.REFUSED, 999, None, Cause.ODD_STATUS),
    (Outcome.REFUSED, None, None, Cause.ODD_STATUS),
    (Outcome.TIMEOUT, None, "connect", Cause.TIMEOUT),
    (Outcome.UNREACHABLE, None, "dns", Cause.DNS),
    (Outcome.UNREACHABLE, None, "tls_expired", Cause.TLS_EXPIRED),
    (Outcome.UNREACHABLE, None, "too_much_response", Cause.BAD_RESPONSE),
    (Outcome.UNREACHABLE, None, "refused", Cause.CONNECTION),
    (Outcome.UNREACHABLE, None, None, Cause.CONNECTION),
    (Outcome.BLOCKED, None, "address: 10.0.0.1", Cause.BLOCKED),
    (Outcome.REFUSED, None, "oauth2: 401 invalid_client", Cause.TOKEN),
    (Outcome.UNREACHABLE, None, "oauth2: dns", Cause.TOKEN),
]


def test_an_attempt_has_the_cause_that_its_owner_can_act_on():
    assert [(o, s, e, digest.cause_of(o, s, e)) for o, s, e, _ in CAUSES] == CAUSES


@given(
    st.sampled_from(Kind), st.sampled_from(Cause), st.text(max_size=50), st.none() | st.integers(-9, 2**62),
    st.none() | st.tuples(*[st.integers(0, 9)] * 3),
)  # fmt: skip
def test_a_digest_is_the_same_after_the_outbox(kind, cause, text, at_us, storm):
    section = dataclasses.replace(SECTION, kind=kind, cause=cause, response=text, ended_us=at_us, status=500)
    made = Digest(kind, "a@example.com", "en", 3, 1, (section, SECTION), more=2, storm=storm)
    assert digest.digest_of(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_a_foreign_value_is_not_a_digest():
    for stored in ({}, {"kind": "failing", "sections": [{}]}, {"kind": "odd", "sections": []}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            digest.digest_of(stored)


def test_sections_are_few_and_gravest_first():
    kinds = [Kind.REMINDER, Kind.DISABLED, *[Kind.RECOVERED] * 20, Kind.FAILING]
    shown, more = digest.arranged([dataclasses.replace(SECTION, kind=kind) for kind in kinds])
    assert [each.kind for each in shown[:3]] == [Kind.DISABLED, Kind.FAILING, Kind.RECOVERED]
    assert (len(shown), more) == (digest.SECTIONS_MAX, 3)
    assert digest.gravest(kinds) is Kind.DISABLED


@given(st.text(max_size=300) | st.text("\r\n\x00\x1b\u202e\u2066\ud800 a", max_size=300), st.integers(1, 200))
def test_a_strangers_text_is_harmless_and_bounded(text, length):
    line, lines = digest.clean_line(text, length), digest.clean_text(text, length)
    assert len(line) <= length
    assert len(lines) <= length
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {c for c in lines if unicodedata.category(c).startswith("C")} <= {"\n"}


def test_a_url_is_shown_without_its_possible_secrets():
    assert digest.shown_url("https://u:pw@h.example:8443/a b?token=1#x") == "https://h.example:8443/a%20b"
    assert digest.shown_url("https://[::1") == ""
    assert digest.host_of("https://u:pw@H.example/x") == "h.example"
    assert digest.excerpt(b"\xff<b>\r\nok\x00") == "\N{REPLACEMENT CHARACTER}<b>\nok"
