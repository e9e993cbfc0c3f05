"""No secret in anything that is printed or stored: one story with every kind of secret, then a search for them all."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys

import pytest

from support.secrecy import seen_in

KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in (7, 8)]
BYTES = {
    name: f"marker of {name} secret, 32 bytes"[:32].ljust(32).encode() for name in ("standard", "ed25519")
}
STANDARD = "whsec_" + base64.b64encode(BYTES["standard"]).decode()
ED25519 = "whsk_" + base64.b64encode(BYTES["ed25519"]).decode()
LEGACY, PASSWORD, TOKEN = "marker-of-legacy-secret", "marker-of-smtp-password", "marker-of-header-token"
GIVEN = "whsec_" + base64.b64encode(b"marker of a secret that is too lo" * 2).decode()
TYPED = "marker-of-typed-secret"
IDENTIFYING = [f"marker-of-{kind}" for kind in ("basic-password", "bearer-token", "client-secret")]
AUTHS = (
    {"basic": {"username": "me", "password": IDENTIFYING[0]}},
    {"bearer": {"token": IDENTIFYING[1]}},
    {"oauth2": {"token_url": "https://127.0.0.1:1/", "client_id": "me", "client_secret": IDENTIFYING[2]}},
)
SIGNING = (STANDARD, ED25519, LEGACY, TYPED)


@pytest.fixture
def run(database):
    """Return `await run(*words)`: what a command printed, all of it."""

    async def call(*words, stdin=b"", **variables):
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("PGHOOKD_", "PG"))}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pghookd", *map(str, words),
            env=environ | {"PGHOOKD_DATABASE_URL": database, "PGHOOKD_SECRETS_KEY": f"a:{KEYS[0]}"} | variables,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(stdin), 60)
        return out.decode()

    return call


async def dump(db, kinds):
    names = await db.fetch(
        "select oid::regclass::text as name from pg_class where relnamespace = 'webhooks'::regnamespace"
        " and relkind::text = any ($1) and not relispartition",
        kinds,
    )
    rows = [row[0] for each in names for row in await db.fetch(f"select t::text from {each['name']} t")]
    return "\n".join(row or "" for row in rows)


async def operate(run, db, ids):
    """Ask everything that says something of endpoints, events and secrets, wrong questions too."""
    standard = ids[0]
    event_id = await db.fetchval("select min(event_id) from webhooks.events")
    asked = [("check",), ("check", "--json"), ("endpoint", "list"), ("event", "why", event_id)]
    asked += [("event", "show", event_id, "--json"), ("secret", "rotate", 10**9), ("endpoint", "show", 10**9)]
    asked += [("endpoint", "show", each) for each in ids] + [("endpoint", "show", standard, "--json")]
    asked += [
        ("endpoint", "disable", standard),
        ("endpoint", "enable", standard),
        ("endpoint", "test", standard),
    ]
    asked += [("endpoint", "add", "s", "http://h.example", "--secret", GIVEN)]
    asked += [("endpoint", "add", "nobody", "http://h.example", "--secret", TYPED)]
    asked += [("endpoint", "add", "s", "nonsense", "--secret", TYPED)]
    printed = [await run(*words) for words in asked]
    for auth in ({"basic": AUTHS[1]["bearer"]}, AUTHS[0], [IDENTIFYING[1]]):
        words = ("endpoint", "add", "s", "http://h.example", "--no-secret", "--auth", "-")
        printed.append(await run(*words, stdin=json.dumps(auth).encode()))
    printed.append(
        await run("endpoint", "add", "s", "http://h.example", "--secret", "-", stdin=TYPED.encode())
    )
    wrong = (
        {"PGHOOKD_SECRETS_KEY": f"a:{KEYS[0]} b:{KEYS[1][:-6]}"},
        {"PGHOOKD_SECRETS_KEY": f"other:{KEYS[1]}"},
        {"PGHOOKD_SMTP_PASSWORD": PASSWORD, "PGHOOKD_SMTP_HOST": "smtp.example"},
        {"PGHOOKD_EGRESS_PROXY": f"ftp://u:{PASSWORD}@proxy.example"},
        {"PGHOOKD_DATABASE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/none"},
        {"PGHOOKD_DATABASE_URL": f"postgresql://u:{PASSWORD}/@127.0.0.1:x/none"},
    )
    return printed + [await run("check", **settings) for settings in wrong]


@pytest.mark.slow
async def test_no_secret_is_printed_or_stored(db, shop, start, database, run, until):
    made = [("/ok", {"secret": STANDARD}), ("/asym", {"secret": ED25519}), ("/old", {"secret": LEGACY})]
    made.append(("/svix", {"secret": STANDARD, "profile": "svix"}))
    ids = [await shop.open(path, **columns) for path, columns in made]
    ids.append(await shop.open(url="http://127.0.0.1:1/", secret=LEGACY))  # nobody answers
    ids.append(await shop.open("/h", secret=LEGACY, headers=json.dumps({"authorization": f"Bearer {TOKEN}"})))
    ids += [await shop.open(f"/auth{n}", auth=json.dumps(auth)) for n, auth in enumerate(AUTHS)]
    ids.append(await shop.open("/unusable", auth='"enc:v1:gone:AAAA"'))
    ids.append(await shop.open("/lost", secret="enc:v1:gone:AAAA"))
    ids.append(await shop.open("/bad", secret="whsk_" + base64.b64encode(BYTES["ed25519"] * 2).decode()))
    key = {
        "secrets_key": f"a:{KEYS[0]}",
        "smtp_password": PASSWORD,
        "log_level": "debug",
        "log_successes": "all",
    }
    daemon = await start(database, **key)
    await until(
        lambda: db.fetchval("select count(*) = 0 from webhooks.endpoints where left(secret, 7) <> 'enc:v1:'"),
        20,
    )
    await shop.emit()
    await until(lambda: db.fetchval("select count(distinct endpoint_id) >= 11 from webhooks.attempts"), 20)
    fresh = await db.fetchval("select webhooks.rotate_secret($1, secret => $2)", ids[2], TYPED)
    assert fresh == TYPED
    await shop.emit("webhook_told", payload="null")
    printed = await operate(run, db, ids)
    assert any("enc" in text or "encrypted" in text for text in printed)
    rotated = json.loads(await run("secret", "rotate", ids[0], "--json"))[
        "secret"
    ]  # the one place where it is shown
    printed.append(await run("secret", "rotate-key", PGHOOKD_SECRETS_KEY=f"b:{KEYS[1]} a:{KEYS[0]}"))
    await until(
        lambda: db.fetchval(
            "select count(*) = 0 from webhooks.endpoints where left(secret, 7) <> 'enc:v1:'"
            " or left(previous_secret, 7) <> 'enc:v1:' or jsonb_typeof(auth) = 'object'"
        ),
        20,
    )
    daemon.stop()
    await daemon.ended()
    printed += [json.dumps(line) for line in daemon.lines] + daemon.noise
    secrets = [*SIGNING, *IDENTIFYING, PASSWORD, TOKEN, rotated, *KEYS, GIVEN]
    assert seen_in("\n".join(printed), secrets) == []
    assert seen_in(await dump(db, ["v"]), secrets) == []
    # An endpoint's own headers are its owner's to keep secret or not; they are in the table as they were given.
    assert seen_in(await dump(db, ["r", "p"]), secrets) == [TOKEN]
