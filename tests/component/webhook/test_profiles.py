"""Requests at real receivers, checked by the verifiers that senders publish: each profile, rotation and kind of key.

From PyPI standardwebhooks, svix and stripe; from npm, where there is a node, those of the same names and
@octokit/webhooks-methods. Shopify and WooCommerce publish recipes instead, which are followed with hmac alone.
Ed25519 is in none of these libraries yet: node's own crypto and OpenSSL's (cryptography) judge it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import subprocess

import pytest
import standardwebhooks
import stripe
import svix.webhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pghookd.webhook import signing
from support.crew import living
from support.events import emit

SECRET = "whsec_" + base64.b64encode(bytes(range(100, 132))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(132, 164))).decode()
LEGACY = "correct horse battery staple"
PRIVATE = "whsk_" + base64.b64encode(bytes(range(32))).decode()
PAYLOAD = '{"total": 12.50, "name": "Núñez ☕", "items": [1 , 2]}'
STANDARD = {"webhook-id", "webhook-timestamp", "x-webhook-topic", "x-webhook-source", "x-webhook-attempt"}
PACKAGES = ("standardwebhooks", "svix", "@octokit/webhooks-methods")

VERIFY_JS = """
const crypto = require("crypto");
const octokit = import("@octokit/webhooks-methods");
const believes = (library, one, body) => {
  new (require(library).Webhook)(one.secret).verify(body, one.headers);
  return true;
};
const verify = {
  standardwebhooks: (one, body) => believes("standardwebhooks", one, body),
  svix: (one, body) => believes("svix", one, body),
  octokit: async (one, body) => (await octokit).verify(one.secret, body, one.headers["x-hub-signature-256"]),
  ed25519: (one, body) => {
    const x = Buffer.from(one.secret.slice(5), "base64").toString("base64url");
    const key = crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    const signed = `${one.headers["webhook-id"]}.${one.headers["webhook-timestamp"]}.${body}`;
    return one.headers["webhook-signature"].split(" ").some((each) =>
      each.startsWith("v1a,") && crypto.verify(null, Buffer.from(signed), key, Buffer.from(each.slice(4), "base64")));
  },
};
(async () => {
  const said = [];
  for (const one of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
    try { said.push(await verify[one.by](one, Buffer.from(one.body, "base64").toString("utf8"))); }
    catch (error) { said.push(error.message); }
  }
  process.stdout.write(JSON.stringify(said));
})();
"""


@pytest.fixture(scope="session")
def judge_by_npm(tmp_path_factory):
    """Return a function that lets npm's libraries judge (library, secret, headers, body): True, false or why not."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm or node is not installed")
    folder = tmp_path_factory.mktemp("npm")
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefix", str(folder)]
    done = subprocess.run(
        ["npm", "install", *options, *PACKAGES], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"npm could not install its verifiers: {done.stderr.strip()[-200:]}")

    def judge(*requests):
        told = [
            {"by": by, "secret": secret, "headers": headers, "body": base64.b64encode(body).decode()}
            for by, secret, headers, body in requests
        ]
        command = ["node", "-e", VERIFY_JS]
        done = subprocess.run(
            command, input=json.dumps(told), capture_output=True, text=True, check=True, cwd=folder
        )
        return json.loads(done.stdout)

    return judge


@pytest.fixture
async def con(database, connect):
    con = await connect(database)
    await con.execute(
        "insert into webhooks.sites (site_id, name, url) values ('s', 'S', 'https://shop.example')"
    )
    return con


@pytest.fixture
async def deliver(con, database, receiver, until):
    """Return `await deliver({name: columns}, ...)`: one event to an endpoint each; what each receiver got."""

    async def run(endpoints, **settings):
        for path, columns in endpoints.items():
            row = {"site_id": "s", "url": receiver.url(f"/{path}"), **columns}
            places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
            sql = f"insert into webhooks.endpoints ({', '.join(row)}) values ({places})"
            await con.execute(sql, *row.values())
        return await send(**settings)

    async def send(**settings):
        receiver.requests.clear()
        count = await con.fetchval("select count(*) from webhooks.endpoints")
        async with living(database, **settings):
            event_id = await emit(con, payload=PAYLOAD)
            recorded = "select count(*) = $2 from webhooks.attempts where event_id = $1"
            await until(lambda: con.fetchval(recorded, event_id, count))
        requests = [request for request in receiver.requests if request.event_id == event_id]
        assert all(request.headers.keys() >= STANDARD for request in requests)
        return {request.path[1:]: request for request in requests}

    run.again = send
    return run


def changed(request):
    """Return the request with another body, the same headers."""
    assert b"12.50" in request.body
    return request.headers, request.body.replace(b"12.50", b"12.51")


def standard(secret, headers, body):
    try:
        standardwebhooks.Webhook(secret).verify(body, headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def by_svix(secret, headers, body):
    only = {name: value for name, value in headers.items() if not name.startswith("webhook-")}
    try:
        svix.webhooks.Webhook(secret).verify(body, only)
    except svix.webhooks.WebhookVerificationError:
        return False
    return True


def by_stripe(secret, headers, body):
    try:
        return (
            stripe.Webhook.construct_event(body, headers["stripe-signature"], secret)["type"]
            == "order_created"
        )
    except stripe.SignatureVerificationError:
        return False


def by_recipe(header, algorithm, encode):
    """Verify as shops document it: the header against the digest of the raw body."""

    def verify(secret, headers, body):
        return hmac.compare_digest(
            headers[header], encode(hmac.new(secret.encode(), body, algorithm).digest())
        )

    return verify


def base64_text(digest):
    return base64.b64encode(digest).decode()


VERIFIERS = {
    "svix": by_svix,
    "stripe": by_stripe,
    "shopify": by_recipe("x-shopify-hmac-sha256", hashlib.sha256, base64_text),
    "woocommerce": by_recipe("x-wc-webhook-signature", hashlib.sha256, base64_text),
    "github": by_recipe("x-hub-signature-256", hashlib.sha256, lambda digest: "sha256=" + digest.hex()),
    "simvoly": by_recipe("x-webhook-signature", hashlib.sha512, bytes.hex),
}


async def test_each_profile_passes_its_senders_verifier_and_the_standards(deliver):
    got = await deliver({name: {"profile": name, "secret": SECRET} for name in VERIFIERS})
    for name, verify in VERIFIERS.items():
        headers, body = got[name].headers, got[name].body
        assert verify(SECRET, headers, body), name
        assert not verify(OTHER, headers, body), name
        assert not verify(SECRET, *changed(got[name])), name
        assert standard(SECRET, headers, body), name
        assert not standard(SECRET, *changed(got[name])), name
        assert body == PAYLOAD.encode() or (
            name == "stripe" and json.loads(body)["id"] == headers["webhook-id"]
        )


async def test_npms_verifiers_believe_the_same(deliver, judge_by_npm):
    got = await deliver({name: {"profile": name, "secret": SECRET} for name in ("svix", "github", "plain")})
    asked = {"svix": "svix", "octokit": "github", "standardwebhooks": "plain"}
    said = judge_by_npm(
        *((by, SECRET, got[name].headers, got[name].body) for by, name in asked.items()),
        *(("standardwebhooks", SECRET, request.headers, request.body) for request in got.values()),
        *((by, OTHER, got[name].headers, got[name].body) for by, name in asked.items()),
        *((by, SECRET, *changed(got[name])) for by, name in asked.items()),
    )
    assert said[:6] == [True] * 6
    assert len(said) == 12
    assert True not in said[6:]


async def test_what_each_profile_says_beside_its_signature(deliver):
    got = await deliver({name: {"profile": name, "secret": LEGACY} for name in VERIFIERS})
    simvoly, github, shopify = got["simvoly"].headers, got["github"].headers, got["shopify"].headers
    assert simvoly["x-webhook-id"] == str(1 + list(VERIFIERS).index("simvoly"))
    assert (
        simvoly["x-webhook-topic"]
        == github["x-github-event"]
        == shopify["x-shopify-topic"]
        == "order_created"
    )
    assert (
        simvoly["x-webhook-source"]
        == got["woocommerce"].headers["x-wc-webhook-source"]
        == "https://shop.example"
    )
    assert github["x-github-delivery"] == shopify["x-shopify-event-id"] == github["webhook-id"]
    assert shopify["x-shopify-shop-domain"] == "shop.example"
    for request in got.values():
        names = [line.partition(":")[0].lower() for line in request.raw_head.decode().split("\r\n")[1:]]
        assert len(names) == len(set(names))


async def test_a_profile_may_be_the_platforms_and_an_endpoint_may_do_without(deliver):
    got = await deliver(
        {"of_platform": {"secret": LEGACY}, "plain": {"secret": LEGACY, "profile": "plain"},
         "own": {"secret": LEGACY, "profile": "github"}, "unsigned": {}},
        delivery={"profile": "simvoly"},
    )  # fmt: skip
    assert VERIFIERS["simvoly"](LEGACY, got["of_platform"].headers, got["of_platform"].body)
    assert "x-webhook-signature" not in got["plain"].headers
    assert json.loads(got["plain"].body)["type"] == "order_created"
    assert VERIFIERS["github"](LEGACY, got["own"].headers, got["own"].body)
    assert "x-webhook-signature" not in got["unsigned"].headers
    assert got["unsigned"].body == PAYLOAD.encode()


async def test_a_custom_profile_signs_as_its_spec_says(deliver):
    """Slack's recipe: v0=, hex, over v0:time:body."""
    spec = {"header": "X-Slack-Signature", "prefix": "v0=", "signed": "v0:{timestamp}:{body}",
            "headers": {"X-Slack-Request-Timestamp": "{timestamp}"}}  # fmt: skip
    got = await deliver({"a": {"profile": "custom", "profile_spec": json.dumps(spec), "secret": LEGACY}})
    headers = got["a"].headers
    signed = f"v0:{headers['x-slack-request-timestamp']}:".encode() + got["a"].body
    assert headers["x-slack-signature"] == "v0=" + hmac.new(LEGACY.encode(), signed, "sha256").hexdigest()


async def test_either_secret_verifies_in_a_rotation_and_only_the_new_one_later(con, deliver, judge_by_npm):
    await deliver({name: {"profile": name, "secret": SECRET} for name in ("plain", "stripe", "svix")})
    for endpoint_id in (1, 2, 3):
        await con.execute("select webhooks.rotate_secret($1, '1 hour', $2)", endpoint_id, OTHER)
    got = await deliver.again()
    verifiers = {"plain": standard, "stripe": by_stripe, "svix": by_svix}
    for name, verify in verifiers.items():
        request = got[name]
        for secret in (SECRET, OTHER):
            assert verify(secret, request.headers, request.body), name
            assert standard(secret, request.headers, request.body), name
            assert not verify(secret, *changed(request)), name
    first = got["plain"].headers["webhook-signature"].split(" ")[0]
    assert standard(OTHER, {**got["plain"].headers, "webhook-signature": first}, got["plain"].body), (
        "newest first"
    )
    by_npm = [(by, secret, got[name].headers, got[name].body) for by, name in
              (("svix", "svix"), ("standardwebhooks", "plain")) for secret in (SECRET, OTHER)]  # fmt: skip
    assert judge_by_npm(*by_npm) == [True] * 4
    await con.execute("update webhooks.endpoints set previous_secret_until = now() - '1 s'::interval")
    got = await deliver.again()
    for name, verify in verifiers.items():
        assert verify(OTHER, got[name].headers, got[name].body)
        assert not verify(SECRET, got[name].headers, got[name].body)


def by_openssl(public, headers, body):
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix("whpk_")))
    version, _, text = headers["webhook-signature"].partition(",")
    try:
        key.verify(base64.b64decode(text), signed)
    except InvalidSignature:
        return False
    return version == "v1a"


async def test_ed25519_is_verified_with_the_public_key(deliver, judge_by_npm):
    got = await deliver({"a": {"secret": PRIVATE}, "bare": {"secret": PRIVATE, "profile": "simvoly"}})
    public = signing.public_key_of(PRIVATE)
    other = signing.public_key_of("whsk_" + base64.b64encode(bytes(32)).decode())
    asked = []
    for request in got.values():
        asked += [
            (public, request.headers, request.body),
            (other, request.headers, request.body),
            (public, *changed(request)),
        ]
    assert [by_openssl(*each) for each in asked] == [True, False, False] * 2
    assert [said is True for said in judge_by_npm(*(("ed25519", *each) for each in asked))] == [
        True,
        False,
        False,
    ] * 2
    assert "x-webhook-signature" not in got["bare"].headers, "a private key is no shared secret"


async def test_a_private_key_of_64_bytes_signs_as_its_seed_does(con, deliver):
    public = signing.public_key_of(PRIVATE)
    both = bytes(range(32)) + base64.b64decode(public.removeprefix("whpk_"))
    long = "whsk_" + base64.b64encode(both).decode()
    request = (await deliver({"a": {"secret": long}}))["a"]
    assert by_openssl(public, request.headers, request.body)
    await con.execute("select webhooks.rotate_secret(1, '1 hour')")
    request = (await deliver.again())["a"]
    newest, previous = request.headers["webhook-signature"].split(" ")
    assert newest.startswith("v1a,")
    assert by_openssl(public, {**request.headers, "webhook-signature": previous}, request.body)


async def test_from_a_shared_secret_to_a_private_key_without_a_gap(con, deliver, judge_by_npm):
    await deliver({"a": {"secret": SECRET}})
    await con.execute("select webhooks.rotate_secret(1, '1 hour', $1)", PRIVATE)
    request = (await deliver.again())["a"]
    assert [one.split(",")[0] for one in request.headers["webhook-signature"].split(" ")] == ["v1a", "v1"]
    assert standard(SECRET, request.headers, request.body)
    said = judge_by_npm(
        ("standardwebhooks", SECRET, request.headers, request.body),
        ("ed25519", signing.public_key_of(PRIVATE), request.headers, request.body),
    )
    assert said == [True, True]
