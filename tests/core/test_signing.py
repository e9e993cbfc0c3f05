"""Signatures are those of Standard Webhooks, and no secret gets into an error."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from pghookd.core import signing

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def test_the_example_of_the_standard():
    # From the test vectors of the Standard Webhooks libraries.
    key = signing.key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = signing.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.integers(0, 4_000_000_000), st.text(max_size=200))
def test_the_librarys_own_signature_is_the_same(key, timestamp_s, text):
    secret = "whsec_" + base64.b64encode(key).decode()
    ours = signing.sign(signing.key_of(secret), "evt_1", timestamp_s, text.encode())
    theirs = standardwebhooks.Webhook(secret).sign("evt_1", datetime.fromtimestamp(timestamp_s, UTC), text)
    assert ours.decode() == theirs


@pytest.mark.parametrize("change", ["id", "time", "body", "key"])
def test_each_part_is_signed(change):
    parts = {"key": KEY, "id": "evt_1", "time": 100, "body": b"{}"}
    other = {**parts, change: {"key": KEY[::-1], "id": "evt_2", "time": 101, "body": b"{ }"}[change]}
    signatures = {signing.sign(p["key"], p["id"], p["time"], p["body"]) for p in (parts, other)}
    assert len(signatures) == 2


@pytest.mark.parametrize("length", [24, 32, 64])
def test_whsec_is_base64(length):
    assert signing.key_of("whsec_" + base64.b64encode(b"k" * length).decode()) == b"k" * length


@pytest.mark.parametrize(
    ("secret", "key"),
    [("swordfish", b"swordfish"), ("pässword", "pässword".encode()), ("WHSEC_x", b"WHSEC_x")],
)
def test_any_other_text_is_the_key_itself(secret, key):
    assert signing.key_of(secret) == key


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_",
        "whsec_canary",
        "whsec_canary!canary!canary!canary!canary!canary",
        "whsec_canaryü",
        "whsec_" + base64.b64encode(b"canary" * 3).decode(),
        "whsec_" + base64.b64encode(b"canary" * 11).decode(),
        "whsk_" + base64.b64encode(b"canary" * 8).decode(),
        "enc:v1:canary",
        "",
    ],
)
def test_an_unusable_secret_is_refused_without_being_quoted(secret):
    with pytest.raises(ValueError, match="the secret is") as caught:
        signing.key_of(secret)
    assert "canary" not in str(caught.value)
    assert base64.b64encode(b"canary").decode() not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
