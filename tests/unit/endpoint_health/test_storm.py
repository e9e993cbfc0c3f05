"""Which failures make a storm, which do not, and for how long one may hold anything."""

from __future__ import annotations

import dataclasses

import pytest

from pghookd.endpoint_health.incident import (
    DAY_US,
    SECOND_US,
    Case,
    Facts,
    Health,
    Incident,
    IncidentPolicy,
    MailMarks,
)
from pghookd.endpoint_health.owner_plan import Owner, plan
from pghookd.endpoint_health.storm import HOLD_MAX_US, SITES_MIN, extent, is_storm
from pghookd.model.domains import a_label, registrable, registrable_of
from pghookd.settings.schema import Settings

POLICY = IncidentPolicy.of(Settings())
T0 = 20_000 * DAY_US
LIMITS = {"share": 0.3, "hosts_min": 20}


def failing(sites, domains):
    """Return evidence of so many sites over so many domains."""
    return [(f"s{n}", f"https://h{n}.d{n % domains}.example/") for n in range(sites)]


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a1.evil.com", "evil.com"),
        ("A21.Evil.COM.", "evil.com"),
        ("shop.co.uk", "shop.co.uk"),
        ("hooks.shop.co.uk", "shop.co.uk"),
        ("hooks.shop.com.au", "shop.com.au"),
        ("a.b.shop.de", "shop.de"),
        ("co.de", "co.de"),
        ("localhost", "localhost"),
        ("x.bücher.example", "xn--bcher-kva.example"),
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.2.200", "192.0.2.0/24"),
        ("2001:db8:1:2::1", "2001:db8:1::/48"),
        ("", ""),
    ],
)
def test_a_host_is_counted_by_its_registrable_domain(host, domain):
    assert registrable(host) == domain


def test_urls_and_labels_that_cannot_be_read_are_not_an_error():
    assert registrable_of("https://[2001:db8::1]:8443/x") == "2001:db8::/48"
    assert registrable_of("http://[") == ""
    assert a_label("\u200d.example") == "\u200d.example"


def test_a_storm_needs_a_share_of_the_sites_over_many_domains():
    assert is_storm(extent(failing(31, 31), 100), **LIMITS)
    assert not is_storm(extent(failing(30, 30), 100), **LIMITS)
    assert not is_storm(extent(failing(31, 20), 100), **LIMITS)
    assert not is_storm(extent(failing(100, 100), 100), share=0, hosts_min=20)
    few = extent(failing(SITES_MIN - 1, SITES_MIN - 1), 1)
    assert not is_storm(few, share=0.3, hosts_min=1)
    assert is_storm(extent(failing(SITES_MIN, SITES_MIN), 1), share=0.3, hosts_min=1)


def test_one_site_counts_once_however_many_endpoints_fail():
    alone = [("evil", f"https://a{n}.evil{n}.example/") for n in range(1000)]
    assert (extent(alone, 30).sites, extent(alone, 30).domains) == (1, 1)
    assert not is_storm(extent(alone, 1), **LIMITS)


def test_names_below_one_domain_count_once():
    below = [(f"s{n}", f"https://a{n}.evil.example/") for n in range(1000)]
    assert extent(below, 0).domains == 1
    assert not is_storm(extent(below, 0), **LIMITS)


def case(after_us, health=Health.SHAKY, facts=None, **columns):
    known = {"first_failure_us": T0, "last_failure_us": T0 + after_us, "window_us": T0}
    facts = facts or Facts(failures=3, unsettled=1)
    return Case(Incident(1, health, **{**known, **columns}), facts, T0 + after_us, POLICY)


def test_a_storm_holds_a_first_mail_for_six_hours_at_most():
    assert HOLD_MAX_US == 6 * 3600 * SECOND_US
    assert not plan([case(HOLD_MAX_US - 1)], Owner(), storm=True).sections
    assert plan([case(HOLD_MAX_US)], Owner(), storm=True).sections


def test_a_later_storm_does_not_restart_the_six_hours():
    """The window moves with each storm that ends; the first failure does not."""
    moved = case(HOLD_MAX_US, window_us=T0 + HOLD_MAX_US - POLICY.first_wait_us)
    assert plan([moved], Owner(), storm=True).sections


def test_a_storm_stops_a_disabling_clock_for_six_hours_at_most():
    enough = Facts(failures=9, unsettled=1, events_failed=3, days_failed=2)
    marks = MailMarks(mailed_us=T0, told_us=T0, warned_us=T0 + 4 * DAY_US, reminded=3)
    held = dataclasses.replace(marks, paused_us=HOLD_MAX_US - 1)
    spent = dataclasses.replace(marks, paused_us=HOLD_MAX_US)
    late = {"after_us": 6 * DAY_US, "health": Health.FAILING, "facts": enough}
    assert plan([case(**late, marks=held)], Owner(), storm=True).switch_off == ()
    assert plan([case(**late, marks=held)], Owner(), storm=False).switch_off == (1,)
    assert plan([case(**late, marks=spent)], Owner(), storm=True).switch_off == (1,)
