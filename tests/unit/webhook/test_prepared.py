"""The requests that an endpoint's options lead to; no options cost nothing; unusable ones are reported."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json

import pytest

from pghookd.model import endpoint_options
from pghookd.model.delivery import Endpoint
from pghookd.model.endpoint_options import EndpointOptions, parse_headers, parse_statuses
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults, PreparedEndpoint

DEFAULTS = Defaults.of(Settings())
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PRIVATE = "whsk_" + base64.b64encode(bytes(range(32))).decode()


def prepared(platform="standard", secret=SECRET, timeout_s=None, **asked):
    endpoint = Endpoint(
        7, "s", 0, "https://a.example/", ("*",), enabled=True, from_event_id=0, secret=secret, timeout_s=timeout_s,
        options=EndpointOptions(**asked) if asked else None,
    )  # fmt: skip
    return PreparedEndpoint.of(endpoint, dataclasses.replace(DEFAULTS, profile=platform))


def test_an_endpoint_that_asks_for_nothing_has_the_settings_own():
    made = prepared()
    assert made.policy is DEFAULTS.retry
    assert (made.timeout_s, made.profile) == (15, None)
    assert isinstance(made.sign, functools.partial), "the hot path goes straight to the HMAC"
    assert prepared(secret=None).sign is None


def test_options_are_read_once_for_each_text():
    text = json.dumps({"retry_schedule": "5s", "previous_secret": "old", "previous_until_s": 5.5})
    found = endpoint_options.read(text)
    assert found is endpoint_options.read(str(text))
    assert found == EndpointOptions(retry_schedule="5s", previous_secret="old", previous_until_s=5.5)
    assert endpoint_options.read("{}") == EndpointOptions()
    assert "old" not in repr(found)


def test_each_option_has_its_effect():
    made = prepared(
        timeout_s=3.0, retry_schedule="1s, 2m", success_statuses="200,202-204", headers='{"x-key": "abc"}'
    )
    assert made.policy.schedule == (1.0, 120.0)
    assert made.policy.successes == {200, 202, 203, 204}
    assert made.policy.jitter == DEFAULTS.retry.jitter
    assert made.timeout_s == 3.0
    assert made.head.later == b"x-key: abc\r\n"


def test_profiles_are_the_endpoints_or_the_platforms():
    assert prepared("simvoly").profile.profile.header == "x-webhook-signature"
    assert prepared("simvoly", profile="github").profile.profile.header == "x-hub-signature-256"
    assert prepared("simvoly", profile="plain").profile is None
    spec = '{"header": "x-sig"}'
    assert prepared(profile="custom", profile_spec=spec).profile.profile.header == "x-sig"


def test_a_profiles_header_wins_over_the_endpoints_own():
    made = prepared("github", headers='{"X-GitHub-Event": "forged", "x-key": "1"}')
    assert made.head.later == b"x-key: 1\r\n"


def test_rotation_signs_with_both_until_its_end():
    made = prepared(previous_secret=PRIVATE, previous_until_s=100.0)
    both = made.sign("evt_1", 99, b"{}").split(b" ")
    assert [one.split(b",")[0] for one in both] == [b"v1", b"v1a"]
    assert made.sign("evt_1", 100, b"{}").startswith(b"v1,")
    assert b" " not in made.sign("evt_1", 100, b"{}")


UNUSABLE = [
    {"retry_schedule": "soon"}, {"retry_schedule": "0s"}, {"success_statuses": "204-200"},
    {"success_statuses": "301"}, {"success_statuses": ""}, {"headers": '{"Content-Length": "3"}'},
    {"headers": '{"a": 1}'}, {"headers": "[]"}, {"headers": "{"}, {"profile": "nobody"},
    {"profile": "custom"}, {"profile": "custom", "profile_spec": '{"header": "host"}'},
    {"previous_secret": "whsec_canary", "previous_until_s": 9e9}, {"secret": "whsk_canary"},
]  # fmt: skip


def test_unusable_options_are_reported_without_a_secret():
    for asked in UNUSABLE:
        with pytest.raises(ValueError, match=r".") as caught:
            prepared(**asked)
        assert "canary" not in str(caught.value)


def test_statuses():
    for text, statuses in [
        ("200", {200}),
        ("200-202", {200, 201, 202}),
        (" 200 , 299", {200, 299}),
        ("204-204,201", {201, 204}),
    ]:
        assert parse_statuses(text) == statuses


def test_invalid_statuses():
    for text in [
        "",
        ",",
        "200,",
        "2xx",
        "199",
        "300",
        "200-300",
        "202-201",
        "200 201",
        "٢٠٠",
        "200," * 60 + "200",
    ]:
        with pytest.raises(ValueError, match="2xx"):
            parse_statuses(text)


def test_headers_are_an_object_of_texts():
    assert parse_headers('{"a": "1", "b": "2"}') == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize("asked", [0, -1, 0.0001, 1e9, "NaN", "Infinity"])
def test_a_rate_that_none_can_keep_ends_deliveries_and_nothing_else(asked):
    """The column has a constraint; without it the value is handled as any other nonsense."""
    assert EndpointOptions(rate_per_s=asked).rate is None
    with pytest.raises(ValueError, match="rate_per_s"):
        prepared(rate_per_s=asked)


@pytest.mark.parametrize("asked", [-1.0, float("nan"), float("inf")])
def test_an_invalid_timeout(asked):
    with pytest.raises(ValueError, match="timeout_s"):
        prepared(timeout_s=asked)
