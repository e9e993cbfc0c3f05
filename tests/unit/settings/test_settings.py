"""Settings: names and defaults as others rely on them, bounds, secrets that do not show, contradictions."""

from __future__ import annotations

import pydantic
import pytest

from pghookd import __version__
from pghookd.settings import schema as core
from pghookd.settings.schema import Settings, contradictions, parse_sampling, reloaded, value_of

PORTS = (
    "80,443,1024-65535,!1433,!1521,!2049,!2375,!2376,!2379,!3306,!3389,!5432,!5672,!5900,!6379,!6443,!9042,!9092,"
    "!9200,!9300,!10250,!11211,!27017"
)
HOUR, DAY = 3600, 86400
DEFAULTS = {
    "database": {"url": "", "heartbeat_s": 2, "lease_s": 10, "adopt": "ask", "home": ""},
    "delivery": {
        "concurrency": 512,
        "endpoint_concurrency": 16,
        "timeout_s": 15,
        "connect_timeout_s": 5,
        "grace_s": 20,
        "response_bytes_max": 4096,
        "payload_bytes_max": 10_000_000,
        "queue_bytes_max": 67_108_864,
        "shards": 16,
        "profile": "standard",
        "user_agent": f"pghookd/{__version__}",
    },
    "recorder": {"batch_max": 500, "batch_wait_ms": 5},
    "retry": {
        "schedule": (5, 300, 1800, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR),
        "jitter": 0.2,
        "throttle_floor_s": 60,
        "retry_after_max_s": DAY,
        "age_max_s": 358_500,
    },
    "breaker": {"attempts": 20, "share": 0.5, "probe_s": 30, "probe_max_s": 600},
    "disable": {"after_s": 432_000, "events_min": 3, "days_min": 2, "warn_s": DAY},
    "egress": {
        "allow": (),
        "deny": (),
        "https_only": False,
        "ports": tuple(PORTS.split(",")),
        "proxy": "",
        "ca_file": "",
        "nat64": False,
    },
    "poll": {"fallback_s": 5},
    "smtp": {"host": "", "port": 587, "tls": "starttls", "username": "", "password": ""},
    "mail": {
        "sender": "",
        "reply_to": "",
        "operator": "",
        "platform_name": "",
        "console_url": "",
        "help_url": "",
        "unsubscribe_url": "",
        "templates": "",
        "first_wait_s": 600,
        "gap_s": 1800,
        "urgent_gap_s": 600,
        "reminders": (6 * HOUR, DAY, 3 * DAY, 7 * DAY),
        "recovered_after_s": 1800,
        "daily_max": 6,
        "rate_per_min": 60,
        "digest_by": "owner",
        "check_s": 30,
    },
    "storm": {"share": 0.3, "hosts_min": 20},
    "retention": {
        "days": 90,
        "action": "drop",
        "unsettled_days": 30,
        "records_days": 400,
        "held_days": 14,
        "payload_days": 0,
        "response_days": 0,
    },
    "secrets": {"key": ""},
    "log": {"format": "auto", "level": "info", "successes": 0},
}


def plain(value):
    return value.get_secret_value() if isinstance(value, core.Secret) else value


def test_names_and_defaults_are_those_that_others_rely_on():
    settings = Settings()
    shown = {
        section: {name: plain(value) for name, value in getattr(settings, section)}
        for section in Settings.model_fields
    }
    assert shown == DEFAULTS
    assert tuple(f"{section}.{name}" for section, names in DEFAULTS.items() for name in names) == core.NAMES
    assert list(contradictions(settings)) == []


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(pydantic.ValidationError):
        settings.poll.fallback_s = 3
    with pytest.raises(pydantic.ValidationError):
        settings.poll = core.PollSettings()


KEY = "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="


def test_secrets_never_show():
    settings = Settings.model_validate(
        {
            "database": {"url": "postgresql://u:hunter2@h/d"},
            "smtp": {"password": "hunter2"},
            "secrets": {"key": f"hunter2:{KEY}"},
            "egress": {"proxy": "http://u:hunter2@proxy:3128"},
        }
    )
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hunter2" not in shown
    assert KEY not in shown
    assert "url=Secret('***')" in shown
    assert str(settings.smtp.password) == "***"
    assert {"database.url", "smtp.password", "secrets.key", "egress.proxy"} == core.SECRETS


OUT_OF_BOUNDS = [
    ("delivery.timeout_s", 0),
    ("delivery.timeout_s", "nan"),
    ("delivery.timeout_s", "inf"),
    ("delivery.timeout_s", True),
    ("delivery.concurrency", "12.5"),
    ("delivery.shards", 0),
    ("delivery.user_agent", "a\nb"),
    ("delivery.user_agent", ""),
    ("retry.jitter", 1.1),
    ("retry.schedule", "5"),
    ("retry.schedule", ""),
    ("retry.schedule", [0]),
    ("mail.reminders", "none"),
    ("egress.ports", "!80"),
    ("egress.ports", "http"),
    ("egress.allow", "10.0.0.1/8"),
    ("egress.proxy", "socks5://h:1"),
    ("egress.https_only", "perhaps"),
    ("smtp.tls", "ssl"),
    ("smtp.port", 65536),
    ("mail.sender", "a@b.example, c@d.example"),
    ("mail.sender", "a@b.example\n"),
    ("mail.console_url", "ftp://x"),
    ("mail.unsubscribe_url", "https://x.example/unsubscribe"),
    ("database.url", "mysql://h/d"),
    ("database.url", "postgresql://u:a/b@h:x/d"),
    ("log.successes", "1/0"),
    ("log.level", "loud"),
]


def test_values_out_of_bounds_are_refused():
    for name, value in OUT_OF_BOUNDS:
        section, field = name.split(".")
        with pytest.raises(pydantic.ValidationError) as raised:
            Settings.model_validate({section: {field: value}})
        assert [".".join(map(str, error["loc"][:2])) for error in raised.value.errors()] == [name], value


TEXTS = [
    ("delivery.timeout_s", "2.5", 2.5),
    ("disable.after_s", "0", 0),
    ("retry.schedule", "5s, 5m,2h,1d", (5, 300, 7200, 86400)),
    ("retry.schedule", "none", ()),
    ("egress.allow", "10.0.0.0/8, hooks.internal", ("10.0.0.0/8", "hooks.internal")),
    ("egress.ports", "443", ("443",)),
    ("egress.https_only", "true", True),
    ("mail.unsubscribe_url", "https://x.example/u?t={token}", "https://x.example/u?t={token}"),
    ("database.url", "postgresql://u@/d?host=/run/postgresql", "postgresql://u@/d?host=/run/postgresql"),
    ("log.successes", "1/100", 100),
]
TOGETHER = [  # settings, and the names in the report of a fault
    ({"delivery": {"timeout_s": 20}}, {"delivery.grace_s", "delivery.timeout_s"}),
    ({"delivery": {"connect_timeout_s": 16}}, {"delivery.connect_timeout_s", "delivery.timeout_s"}),
    ({"delivery": {"concurrency": 8}}, set()),
    ({"delivery": {"queue_bytes_max": 9}}, {"delivery.payload_bytes_max", "delivery.queue_bytes_max"}),
    ({"breaker": {"probe_s": 601}}, {"breaker.probe_s", "breaker.probe_max_s"}),
    ({"disable": {"warn_s": 432_000}}, {"disable.warn_s", "disable.after_s"}),
    ({"disable": {"after_s": 0}}, set()),
    ({"database": {"lease_s": 3}}, {"database.lease_s", "database.heartbeat_s"}),
    ({"smtp": {"host": "mx.example"}}, {"mail.sender", "smtp.host"}),
    (
        {"smtp": {"host": "mx.example", "tls": "none"}, "mail": {"sender": "a@b.example"}},
        {"smtp.tls", "smtp.host"},
    ),
    ({"smtp": {"host": "127.0.0.1", "tls": "none"}, "mail": {"sender": "a@b.example"}}, set()),
    ({"smtp": {"host": "::1", "tls": "none"}, "mail": {"sender": "a@b.example"}}, set()),
]


def test_texts_become_values():
    for name, text, value in TEXTS:
        section, field = name.split(".")
        assert plain(value_of(Settings.model_validate({section: {field: text}}), name)) == value


def test_contradictions_are_reported():
    for values, names in TOGETHER:
        found = [set(each.names) for each in contradictions(Settings.model_validate(values))]
        assert found == ([names] if names else []), values


def test_sampling_is_none_all_or_one_of_n():
    assert [parse_sampling(text) for text in ("none", "all", "1/7")] == [0, 1, 7]
    for text in ("", "7", "1/x", "2/3"):
        with pytest.raises(ValueError, match="none, all or 1/N"):
            parse_sampling(text)


def test_a_reload_keeps_what_only_a_restart_changes():
    old = Settings()
    new = Settings.model_validate(
        {"database": {"lease_s": 30}, "delivery": {"shards": 4, "timeout_s": 3}, "log": {"level": "debug"}}
    )
    settings, waiting = reloaded(old, new)
    assert waiting == ("database.lease_s", "delivery.shards")
    assert (settings.database.lease_s, settings.delivery.shards) == (10, 16)
    assert (settings.delivery.timeout_s, settings.log.level) == (3, "debug")


def test_the_policy_is_what_decisions_are_made_with():
    policy = Settings.model_validate({"egress": {"ports": "443", "allow": "127.0.0.0/8"}}).egress.policy()
    assert 443 in policy.ports
    assert 80 not in policy.ports
    assert policy.allow.networks
