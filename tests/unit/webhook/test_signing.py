"""Signatures are those of Standard Webhooks, and no secret gets into an error."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from pghookd.webhook import signing

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


def test_each_part_is_signed():
    for change in ["id", "time", "body", "key"]:
        parts = {"key": KEY, "id": "evt_1", "time": 100, "body": b"{}"}
        other = {**parts, change: {"key": KEY[::-1], "id": "evt_2", "time": 101, "body": b"{ }"}[change]}
        signatures = {signing.sign(p["key"], p["id"], p["time"], p["body"]) for p in (parts, other)}
        assert len(signatures) == 2


def test_whsec_is_base64():
    for length in [24, 32, 64]:
        assert signing.key_of("whsec_" + base64.b64encode(b"k" * length).decode()) == b"k" * length


def test_any_other_text_is_the_key_itself():
    for secret, key in [
        ("swordfish", b"swordfish"),
        ("pässword", "pässword".encode()),
        ("WHSEC_x", b"WHSEC_x"),
    ]:
        assert signing.key_of(secret) == key


UNUSABLE = [
    "whsec_",
    "whsec_canary",
    "whsec_canary!canary!canary!canary!canary!canary",
    "whsec_canaryü",
    "whsec_" + base64.b64encode(b"canary" * 3).decode(),
    "whsec_" + base64.b64encode(b"canary" * 11).decode(),
    "whsk_" + base64.b64encode(b"canary" * 8).decode(),
    "enc:v1:canary",
    "",
]


def test_an_unusable_secret_is_refused_without_being_quoted():
    for secret in UNUSABLE:
        with pytest.raises(ValueError, match="the secret is") as caught:
            signing.key_of(secret)
        assert "canary" not in str(caught.value)
        assert base64.b64encode(b"canary").decode() not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Ed25519 ------------------------------------------------------------------------------------------------------------

# RFC 8032, 7.1, TEST 1: the private key and what it leads to.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def whsk(raw):
    return "whsk_" + base64.b64encode(raw).decode()


def test_ed25519_signs_the_same_content():
    for raw in [SEED, SEED + PUBLIC]:
        assert signing.public_key_of(whsk(raw)) == "whpk_" + base64.b64encode(PUBLIC).decode()
        version, _, text = signing.signer_of(whsk(raw))("evt_1", 100, b"{}").partition(b",")
        assert version == b"v1a"
        Ed25519PublicKey.from_public_bytes(PUBLIC).verify(base64.b64decode(text), b"evt_1.100.{}")


def test_an_unusable_private_key_is_refused_without_being_quoted():
    for secret in [whsk(SEED[:31]), whsk(SEED + SEED), "whsk_canary", "whsk_", "whsk_ü"]:
        for use in (signing.signer_of, signing.public_key_of):
            with pytest.raises(ValueError, match="the secret is") as caught:
                use(secret)
            assert secret[5:] not in str(caught.value) or secret == "whsk_"


def test_a_shared_secret_has_no_public_key():
    with pytest.raises(ValueError, match="public key"):
        signing.public_key_of(SECRET)


def test_both_secrets_sign_until_the_end_of_a_rotation():
    new, old = signing.signer_of(SECRET), signing.signer_of("old")
    both = signing.overlapping(new, old, 100.0)
    assert both("evt_1", 99, b"{}") == new("evt_1", 99, b"{}") + b" " + old("evt_1", 99, b"{}")
    assert both("evt_1", 100, b"{}") == new("evt_1", 100, b"{}")
