"""Each preset's lines, written out; and what of a custom profile is refused before anything is sent."""

from __future__ import annotations

import base64
import hmac
import json

import pytest

from pghookd.webhook import profile
from pghookd.webhook.profile import ProfileHead, SigningSecrets

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = b'{"a": 1}'


def lines_of(name, secrets=None, spec=None, source="https://shop.example:8443/x", timestamp_s=1000):
    found = profile.profile_of(name, None if spec is None else json.dumps(spec))
    made = ProfileHead.of(found, secrets or SigningSecrets("s3cret"), source, 42).head(
        webhook_id="evt_1", timestamp_s=timestamp_s, event_type="order_created", attempt=2,
        triggered_at="2025-11-24T16:00:00.123Z", body=BODY,
    )  # fmt: skip
    return dict(line.split(": ", 1) for line in made.decode().split("\r\n")[:-1])


def mac(algorithm, content=BODY, key=b"s3cret"):
    return hmac.new(key, content, algorithm)


def b64(digest):
    return base64.b64encode(digest).decode()


PRESETS = {
    "simvoly": {"x-webhook-id": "42", "x-webhook-signature": mac("sha512").hexdigest()},
    "github": {
        "x-github-event": "order_created", "x-github-delivery": "evt_1", "x-github-hook-id": "42",
        "x-hub-signature-256": "sha256=" + mac("sha256").hexdigest(),
    },
    "shopify": {
        "x-shopify-topic": "order_created", "x-shopify-shop-domain": "shop.example",
        "x-shopify-webhook-id": "evt_1", "x-shopify-event-id": "evt_1",
        "x-shopify-triggered-at": "2025-11-24T16:00:00.123Z",
        "x-shopify-hmac-sha256": b64(mac("sha256").digest()),
    },
    "woocommerce": {
        "x-wc-webhook-topic": "order_created", "x-wc-webhook-source": "https://shop.example:8443/x",
        "x-wc-webhook-id": "42", "x-wc-webhook-delivery-id": "evt_1",
        "x-wc-webhook-signature": b64(mac("sha256").digest()),
    },
    "stripe": {"stripe-signature": "t=1000,v1=" + mac("sha256", b"1000." + BODY).hexdigest()},
    "svix": {
        "svix-id": "evt_1", "svix-timestamp": "1000",
        "svix-signature": "v1," + b64(mac("sha256", b"evt_1.1000." + BODY).digest()),
    },
}  # fmt: skip


def test_presets():
    for name in profile.PRESETS:
        assert lines_of(name) == PRESETS[name]


def test_bodies_are_the_payload_alone_where_that_senders_are():
    for name, bare in [(name, name != "stripe") for name in profile.PRESETS]:
        assert ProfileHead.of(profile.PRESETS[name], SigningSecrets(), None, 1).is_bare is bare


def test_the_key_is_the_secrets_text_or_what_the_standard_reads_in_it():
    assert (
        lines_of("simvoly", SigningSecrets(SECRET))["x-webhook-signature"]
        == mac("sha512", key=SECRET.encode()).hexdigest()
    )
    expected = "v1," + b64(mac("sha256", b"evt_1.1000." + BODY, bytes(range(32))).digest())
    assert lines_of("svix", SigningSecrets(SECRET))["svix-signature"] == expected


def test_without_a_shared_secret_nothing_is_signed():
    for name, preset in profile.PRESETS.items():
        for secret in (None, "whsk_" + base64.b64encode(bytes(32)).decode()):
            lines = lines_of(name, SigningSecrets(secret, "old", 2000.0))
            assert set(lines) == set(PRESETS[name]) - {preset.header}


def test_both_secrets_sign_where_a_list_can_be_read():
    for name, count in [("stripe", 2), ("svix", 2), ("github", 1), ("simvoly", 1)]:
        both, late = (
            lines_of(name, SigningSecrets("s3cret", "old", 1500.0), timestamp_s=t) for t in (1499, 1500)
        )
        header = profile.PRESETS[name].header
        mark = profile.PRESETS[name].prefix or "\0"
        assert both[header].count(mark) == (count if mark != "\0" else 0)
        assert late[header].count(mark) == (1 if mark != "\0" else 0)
        if count == 1:
            assert both[header] == PRESETS[name][header]


def test_a_line_without_its_source_is_left_out():
    assert "x-wc-webhook-source" not in lines_of("woocommerce", source=None)
    assert "x-shopify-shop-domain" not in lines_of("shopify", source="no url")


def test_a_custom_profile():
    spec = {"header": "X-Sig", "algorithm": "sha1", "encoding": "base64", "opening": "v0;t={timestamp};",
            "prefix": "s=", "joint": ";", "signed": "v0:{timestamp}:{type}:{body}", "key": "standard",
            "body": "envelope", "headers": {"X-Kind": "{type}/{attempt}"}}  # fmt: skip
    signed = b"v0:1000:order_created:" + BODY
    assert lines_of("custom", SigningSecrets("s3cret", "old", 2000.0), spec) == {
        "X-Kind": "order_created/2",
        "X-Sig": f"v0;t=1000;s={b64(mac('sha1', signed).digest())};s={b64(mac('sha1', signed, b'old').digest())}",
    }


UNFIT = [
    None, [], "x", {"colour": "red"}, {"header": 1}, {"header": "content-length"}, {"header": "X:Y"},
    {"header": ""}, {"header": "x-webhook-topic"}, {"header": "webhook-signature"},
    {"algorithm": "md5"}, {"encoding": "hexx"},
    {"key": "none"}, {"body": "form"}, {"signed": "{id}"}, {"signed": "{body}{secret}"}, {"signed": "{body}{"},
    {"opening": "{body}"}, {"prefix": "{id}"}, {"prefix": "a\r\nb"}, {"joint": "é"}, {"opening": "x" * 201},
    {"headers": []}, {"headers": {"a": 1}}, {"headers": {"host": "x"}}, {"headers": {"a": " b"}},
    {"headers": {"a": ""}}, {"headers": {"a": "b\r\nc"}}, {"headers": {"a": "{body}"}},
    {"headers": {"a": "1", "A": "2"}}, {"header": "a", "headers": {"A": "2"}},
    {"headers": {f"x-{n}": "1" for n in range(21)}},
]  # fmt: skip


def test_what_a_custom_profile_may_not_say():
    for spec in UNFIT:
        with pytest.raises(ValueError, match=r"profile|header"):
            lines_of("custom", spec=spec)


def test_names():
    assert profile.profile_of("standard") is profile.profile_of("plain") is None
    with pytest.raises(ValueError, match="unknown profile 'mailchimp'; choose standard, plain, simvoly"):
        profile.profile_of("mailchimp")
    with pytest.raises(ValueError, match="profile_spec"):
        profile.profile_of("custom", None)
