"""How requests authenticate: accepted values, refusals that quote no value, and the form of a token."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pghookd.model import verdict
from pghookd.model.delivery import Endpoint, Fault, Outcome, Reason
from pghookd.model.endpoint_options import EndpointOptions
from pghookd.settings.schema import Settings
from pghookd.webhook import auth, judge, oauth
from pghookd.webhook.auth import Basic, Bearer, ClientCredentials
from pghookd.webhook.oauth import Granted
from pghookd.webhook.prepared import Defaults, PreparedEndpoint

DEFAULTS = Defaults.of(Settings())
CREDENTIALS = {"token_url": "https://id.example/t?k=canary", "client_id": "me", "client_secret": "canary"}
BASIC, BEARER = {"basic": {"username": "me", "password": "canary"}}, {"bearer": {"token": "canary"}}
OAUTH2 = {"oauth2": CREDENTIALS}


def pair(password=None):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "us")])
    start, end = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2020, 2100))
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, start, end).sign(key, hashes.SHA256())
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    return {
        "certificate": made.public_bytes(serialization.Encoding.PEM).decode(),
        "key": pem.decode(),
    }


PAIR = pair()
SHOWN = {"client_certificate": PAIR}


def prepared(asked, url="https://a.example/", secret=None, **options):
    endpoint = Endpoint(
        7, "s", 0, url, ("*",), enabled=True, from_event_id=0, secret=secret,
        options=EndpointOptions(auth=asked if isinstance(asked, str) else json.dumps(asked), **options),
    )  # fmt: skip
    return PreparedEndpoint.of(endpoint, DEFAULTS)


def test_each_kind_is_read_and_shows_nothing():
    read = {name: auth.parse(json.dumps(each)) for name, each in (BASIC | BEARER | OAUTH2 | SHOWN).items()
            for each in [{name: each}]}  # fmt: skip
    assert read["basic"].scheme == Basic("me", "canary")
    assert read["bearer"].scheme == Bearer("canary")
    assert read["oauth2"].scheme == ClientCredentials(**CREDENTIALS)
    assert dataclasses.asdict(read["client_certificate"].certificate) == PAIR
    both = auth.parse(json.dumps(BASIC | SHOWN))
    assert (both.scheme, both.certificate) == (read["basic"].scheme, read["client_certificate"].certificate)
    assert "canary" not in repr(read)
    assert "BEGIN" not in repr(read)


def test_static_lines_are_in_the_head_once_and_for_all():
    encoded = base64.b64encode("me:pä:ss".encode()).decode()
    told = [
        ({"basic": {"username": "me", "password": "pä:ss"}}, f"authorization: Basic {encoded}\r\n"),
        ({"basic": {"username": "", "password": ""}}, "authorization: Basic Og==\r\n"),
        (BEARER | SHOWN, "authorization: Bearer canary\r\n"),
        (OAUTH2, ""),
        (SHOWN, ""),
    ]
    for asked, line in told:
        made = prepared(asked)
        assert made.head.later == line.encode()
        assert "canary" not in repr(made)
        assert encoded not in repr(made)


def test_auth_replaces_the_own_header_and_shares_none_with_a_profile():
    own = '{"Authorization": "Bearer own", "x-key": "1"}'
    assert prepared(BEARER, headers=own).head.later == b"x-key: 1\r\nauthorization: Bearer canary\r\n"
    assert prepared(OAUTH2, headers=own).head.later == b"x-key: 1\r\n"
    assert prepared(SHOWN, headers=own).head.later == b"Authorization: Bearer own\r\nx-key: 1\r\n"
    with pytest.raises(ValueError, match="both send the header authorization"):
        prepared(BEARER, profile="custom", profile_spec='{"headers": {"Authorization": "x"}}')


BROKEN = [
    "", "canary", "[]", "null", '"canary"', "1", "{}", '{"canary": {}}', '{"type": "basic"}',
    BASIC | BEARER, BEARER | OAUTH2, {"bearer": "canary"}, {"bearer": {}}, {"bearer": {"token": None}},
    {"bearer": {"token": "canary", "canary": ""}}, {"basic": {"username": "canary"}},
    *({"bearer": {"token": token}} for token in (
        "", "can ary", "canary\r\nx: y", "canäry", "=", "a=canary", "c" * 8193)),
    *({"basic": {"username": name, "password": "canary"}} for name in (
        "can:ary", "a\r\nb", "a\x00", "a\x9f", "c" * 2049)),
    '{"basic": {"username": "a", "password": "canary\\ud800"}}', {"basic": {"username": "a", "password": "canary\x7f"}},
    *({"oauth2": CREDENTIALS | change} for change in (
        {"token_url": "http://id.example/canary"}, {"token_url": "https://id.example/can ary"}, {"client_id": ""},
        {"client_secret": "canary\n"}, {"scope": "a\nb"}, {"audience": "\x00"}, {"canary": ""}, {"client_secret": ""})),
    {"oauth2": {"token_url": "https://id.example/", "client_id": "canary"}},
    *({"client_certificate": PAIR | change} for change in (
        {"key": pair()["key"]}, {"key": pair(b"canary")["key"]}, {"key": "canary"}, {"certificate": "canary"},
        {"certificate": PAIR["key"]}, {"key": PAIR["certificate"]}, {"chain": ""})),
    {"client_certificate": {"certificate": PAIR["certificate"]}}, {"bearer": {"token": "canary"}, "x": "y" * 17_000},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_unusable_values_are_reported_without_quoting_them(number):
    with pytest.raises(ValueError, match="auth") as caught:
        prepared(BROKEN[number])
    assert "canary" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_certificate_is_for_https():
    with pytest.raises(ValueError, match="https"):
        prepared(SHOWN, url="http://a.example/")
    assert prepared(SHOWN, url="HTTPS://a.example/").auth.certificate is not None


def test_what_no_key_opens_sends_nothing():
    made = prepared("enc:v1:gone:AAAA", secret="s")
    assert (made.fault, made.auth) == (Fault(Outcome.FAILED, "auth"), None)
    assert prepared("enc:v1:gone:AAAA", secret="enc:v1:gone:AAAA").fault == Fault(Outcome.FAILED, "secret")


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_as_the_rfc_says():
    asked = ClientCredentials(
        "https://id.example/t", "me:1", "pä ss", "read write", "https://api.example/?a=b"
    )
    head, body = oauth.question(asked, "pghookd/1\r\nx: y")
    assert body == (
        b"grant_type=client_credentials&scope=read+write&audience=https%3A%2F%2Fapi.example%2F%3Fa%3Db"
    )
    lines = head.decode().split("\r\n")
    assert lines[0] == "authorization: Basic " + base64.b64encode(b"me%3A1:p%C3%A4+ss").decode()
    assert lines[-3:] == [f"content-length: {len(body)}", "", ""]
    assert "user-agent: pghookd/1x: y" in lines
    assert oauth.question(ClientCredentials(**CREDENTIALS), "u")[1] == b"grant_type=client_credentials"


def answer(**changes):
    told = {"access_token": "abc", "token_type": "Bearer", "expires_in": 3600} | changes
    return json.dumps({name: value for name, value in told.items() if value is not ...}).encode()


def test_lifetimes_are_within_bounds():
    lifetimes = [
        (3600, 3570), (100, 90), ("3600", 3570), (..., 270), (None, 270), ("soon", 270), (True, 270), ([], 270),
        (10**12, 86370), ("1e999", 86370), ("nan", 270), (-5, 0), (0, 0), (10**400, 86370),
    ]  # fmt: skip
    for expires_in, seconds in lifetimes:
        if expires_in == 10**400:
            body = answer(expires_in=...)[:-1] + b', "expires_in": 1' + b"0" * 300 + b"}"
        else:
            body = answer(expires_in=expires_in)
        found = oauth.granted(200, body)
        assert found == Granted(b"authorization: Bearer abc\r\n", seconds), expires_in
        assert "abc" not in repr(found)
    assert isinstance(oauth.granted(200, answer(token_type=...)), Granted)


REFUSALS = [
    (200, b"canary", "no_token"), (200, b"", "no_token"), (200, b"[]", "no_token"), (200, b"{}", "no_token"),
    (200, answer(access_token="canary\r\nx: y"), "no_token"), (200, answer(access_token=1), "no_token"),
    (200, answer(access_token="c" * 8193), "no_token"), (200, answer(token_type="mac"), "no_token"),
    (200, answer(token_type=1), "no_token"), (200, answer()[:-1], "no_token"), (200, b"\xff", "no_token"),
    (200, b"[" * 16000, "no_token"), (302, answer(), "302"), (500, b"canary", "500"),
    (400, b'{"error": "invalid_scope", "error_description": "canary"}', "400 invalid_scope"),
    (401, b'{"error": "canary"}', "401"), (401, b'{"error": ["invalid_client"]}', "401"),
]  # fmt: skip


def test_an_invalid_token_is_refused_by_a_constant_name():
    for status, body, name in REFUSALS:
        assert oauth.granted(status, body) == Fault(Outcome.REFUSED, f"oauth2: {name}")


def test_a_forbidden_token_endpoint_is_final_only_by_its_url():
    def judged(error):
        fault = oauth.unavailable(Fault(Outcome.BLOCKED, error))
        return judge.judge(fault, 1, DEFAULTS.retry, now_s=0, age_from_s=0, random01=0.5)

    assert judged("literal") == verdict.Dead(Reason.BLOCKED)
    assert isinstance(judged("address"), verdict.Retry)
