"""Secrets at rest: what opens them, how they come to be encrypted, and that requests are signed all the same."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest
import structlog
from standardwebhooks import Webhook

from pghookd.encryption import ciphertext
from pghookd.encryption.ciphertext import SECRET, Unopened
from pghookd.encryption.encrypt_at_rest import rotate_key, wrap_plain
from pghookd.encryption.keyring import Vault, revealing
from pghookd.model.delivery import Endpoint, Fault, Outcome
from pghookd.operations import check, endpoints
from pghookd.postgres import client
from pghookd.runtime.upkeep.maintenance import Duties, tidy
from pghookd.settings.keys import parse_keys
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults, PreparedEndpoint
from support.crew import living, settings_of
from support.events import emit

ONE, TWO = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
OLD, NEW = f"old:{ONE}", f"new:{TWO} old:{ONE}"
PLAIN = "whsec_" + base64.b64encode(b"a marker that nobody may see").decode()


def vault_of(text):
    return Vault(parse_keys(text))


# Keys and texts -----------------------------------------------------------------------------------------------------


def test_keys_differ_by_their_ids():
    assert parse_keys(f" a:{ONE},b-2:{TWO}\n") == {"a": b"\1" * 32, "b-2": b"\2" * 32}
    digest = hashlib.sha256(b"\1" * 32).hexdigest()[:8]
    assert parse_keys(ONE) == {digest: b"\1" * 32}


@pytest.mark.parametrize(
    "text", ["hunter2", f"A:{ONE}", f"a:{ONE[:-4]}", f"a:{ONE} a:{TWO}", f":{ONE}", "a:"]
)
def test_an_invalid_key_is_refused_and_not_quoted(text):
    with pytest.raises(ValueError, match="has a key, number") as caught:
        parse_keys(text)
    assert not any(part in str(caught.value) for part in ("hunter2", ONE[:10], TWO[:10]))


@pytest.mark.parametrize("plain", [PLAIN, "legacy ü \ud800", "whsk_" + ONE])
def test_encrypted_values_are_opened_and_nothing_shows(plain):
    vault = vault_of(OLD)
    sealed = vault.seal(plain, 7, SECRET)
    assert sealed.startswith("enc:v1:old:")
    assert vault.seal(plain, 7, SECRET) != sealed
    assert vault_of(NEW).reveal(sealed, 7, SECRET) == plain
    assert vault.reveal(plain, 7, SECRET) == plain
    assert ONE not in repr(vault) + repr(Defaults.of(Settings(), vault.reveal))


DUMPABLE = """
import ctypes
from pghookd.settings.schema import Settings
from pghookd.encryption.keyring import Vault
for key in ("", KEY):
    Vault.of(Settings(secrets={"key": key}))
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


def test_a_process_that_has_keys_leaves_no_core_dump():
    program = DUMPABLE.replace("KEY", repr(OLD))
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "0"]


@pytest.mark.parametrize(
    ("endpoint_id", "purpose", "keys", "change"),
    [
        (8, SECRET, OLD, str),
        (7, "auth", OLD, str),
        (7, SECRET, f"other:{ONE}", str),
        (7, SECRET, f"old:{TWO}", str),
        (7, SECRET, OLD, lambda text: text[:-8] + "AAAAAAA="),
        (7, SECRET, OLD, lambda text: text[:20]),
        (7, SECRET, OLD, lambda text: text + "ü"),
        (7, SECRET, OLD, lambda text: text.replace("v1:old", "v1")),
        (7, SECRET, OLD, lambda _: "enc:v1:old:"),
        (7, SECRET, OLD, lambda _: "enc:v1:"),
    ],
)
def test_nothing_else_is_opened(endpoint_id, purpose, keys, change):
    sealed = change(vault_of(OLD).seal(PLAIN, 7, SECRET))
    with pytest.raises(Unopened) as caught:
        vault_of(keys).reveal(sealed, endpoint_id, purpose)
    assert sealed[12:] not in str(caught.value) or len(sealed) < 13
    with pytest.raises(Unopened):
        ciphertext.plain_only(sealed, endpoint_id, purpose)


# Manners ------------------------------------------------------------------------------------------------------------


def endpoint(**columns):
    return Endpoint(7, "s", 0, "http://x", ("*",), True, 0, **columns)  # noqa: FBT003 - as the columns are


def test_a_manner_signs_with_what_the_vault_opens():
    vault = vault_of(OLD)
    sealed, defaults = vault.seal(PLAIN, 7, SECRET), Defaults.of(Settings(), vault.reveal)
    plain = PreparedEndpoint.of(endpoint(secret=PLAIN), defaults)
    opened = PreparedEndpoint.of(endpoint(secret=sealed), defaults)
    assert opened.sign("evt_1", 5, b"{}") == plain.sign("evt_1", 5, b"{}")
    assert opened.fault is None


def test_a_secret_that_cannot_be_opened_is_our_fault_and_signs_nothing():
    sealed = vault_of(OLD).seal(PLAIN, 7, SECRET)
    for reveal in (revealing(None), vault_of(f"other:{TWO}").reveal):
        prepared = PreparedEndpoint.of(endpoint(secret=sealed), Defaults.of(Settings(), reveal))
        assert prepared.fault == Fault(Outcome.FAILED, "secret")
        with pytest.raises(Unopened):
            prepared.sign("evt_1", 5, b"{}")


# In the database ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute(
        "insert into webhooks.sites (site_id, name, endpoints_max) values ('s', 'A shop', null)"
    )
    return connection


@pytest.fixture
async def session(database, con):
    made = await client.connect(database, name="test")
    yield made
    await made.close()


async def add(con, secret, url="http://x"):
    return await con.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, $2) returning endpoint_id",
        url,
        secret,
    )


async def secrets_of(con, endpoint_id):
    return tuple(
        await con.fetchrow(
            "select secret, previous_secret, secret_kind from webhooks.endpoints where endpoint_id = $1",
            endpoint_id,
        )
    )


async def test_plain_secrets_are_encrypted_at_first_sight_and_no_bell_rings(con, session, connect, database):
    heard = []
    ids = [await add(con, secret) for secret in (PLAIN, "legacy", "whsk_" + ONE, None)]
    listener = await connect(database)
    await listener.add_listener("pghookd", lambda *args: heard.append(args[-1]))
    vault = vault_of(OLD)
    duties = Duties(vault=vault)
    for _ in range(2):
        await tidy(session, duties, logger=structlog.get_logger(), beat=lambda: None)
    found = [await secrets_of(con, each) for each in ids]
    assert [kind for _, _, kind in found] == ["standard", "legacy", "ed25519", None]
    opened = [
        secret and vault.reveal(secret, n, SECRET) for n, (secret, _, _) in zip(ids, found, strict=True)
    ]
    assert opened == [PLAIN, "legacy", "whsk_" + ONE, None]
    assert all(secret.startswith("enc:v1:old:") for secret, _, _ in found[:3])
    await listener.execute("select 1")
    assert heard == []
    await con.execute("update webhooks.endpoints set description = 'x' where endpoint_id = $1", ids[0])
    await listener.execute("select 1")
    assert heard == [f"endpoints:{ids[0]}"]


async def test_rows_changed_in_between_are_left_alone(con, session):
    endpoint_id = await add(con, PLAIN)
    sealed = vault_of(OLD).seal(PLAIN, endpoint_id, SECRET)
    await con.execute("update webhooks.endpoints set secret = 'newer'")
    arguments = ([endpoint_id], [PLAIN], [sealed], [None], [None], ["standard"], [None], [None])
    statement = "select webhooks.wrap_secrets($1, $2, $3, $4, $5, $6, $7, $8)"
    assert await con.fetchval(statement, *arguments) == 0
    assert await secrets_of(con, endpoint_id) == ("newer", None, None)
    with pytest.raises(client.DatabaseError, match="nothing but encrypted"):
        await session.fetchval(
            statement, [endpoint_id], ["newer"], ["plain"], [None], [None], ["legacy"], [None], [None]
        )


@pytest.mark.parametrize(("secret", "begins"), [(PLAIN, "whsec_"), ("whsk_" + ONE, "whsk_")])
async def test_a_rotation_keeps_the_kind_of_an_encrypted_secret_and_the_old_one(con, session, secret, begins):
    vault = vault_of(OLD)
    endpoint_id = await add(con, secret)
    await wrap_plain(session, vault)
    fresh = await con.fetchval("select webhooks.rotate_secret($1)", endpoint_id)
    assert fresh.startswith(begins)
    now, previous, _ = await secrets_of(con, endpoint_id)
    assert (now, vault.reveal(previous, endpoint_id, SECRET)) == (fresh, secret)
    await wrap_plain(session, vault)
    now, previous, _ = await secrets_of(con, endpoint_id)
    assert [vault.reveal(text, endpoint_id, SECRET) for text in (now, previous)] == [fresh, secret]
    assert now.startswith("enc:v1:")


async def test_a_rotated_key_wraps_everything_again_and_may_be_interrupted(con, session, database):
    ids = [await add(con, f"secret {n}") for n in range(450)]
    await con.execute("update webhooks.endpoints set previous_secret = 'x', previous_secret_until = now()")
    while await wrap_plain(session, vault_of(OLD)):
        pass

    def interrupt(progress):
        if progress.looked_at == 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await rotate_key(session, vault_of(NEW), interrupt)
    told = []
    settings = settings_of(database, secrets={"key": NEW})
    done = await endpoints.rotate_key(settings, lambda progress: told.append(progress.looked_at))
    assert (done.wrapped, done.total, done.unopened, told) == (50, 450, [], [200, 400, 450])
    newest = vault_of(f"new:{TWO}")
    for number, endpoint_id in itertools.islice(enumerate(ids), 0, None, 50):
        secret, previous, kind = await secrets_of(con, endpoint_id)
        assert newest.reveal(secret, endpoint_id, SECRET) == f"secret {number}"
        assert newest.reveal(previous, endpoint_id, SECRET) == "x"
        assert kind == "legacy"


@pytest.mark.slow
async def test_the_command_says_how_far_it_is_and_what_it_cannot_open(con, session, database):
    lost = await add(con, "enc:v1:gone:AAAA")
    for secret in ("a", "b"):
        await add(con, secret)

    def run(*arguments, **more):
        env = {**os.environ, "PGHOOKD_DATABASE_URL": database, **more}
        command = (sys.executable, "-m", "pghookd", "secret", "rotate-key", *arguments)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    without = run()
    assert without.returncode == 1
    assert "secrets.key is not set" in without.stderr
    found = run("--json", PGHOOKD_SECRETS_KEY=OLD)
    assert found.returncode == 1
    assert json.loads(found.stdout) == {"total": 3, "looked_at": 3, "wrapped": 2, "unopened": [lost]}
    await con.execute("delete from webhooks.endpoints where endpoint_id = $1", lost)
    assert run(PGHOOKD_SECRETS_KEY=NEW).returncode == 0


async def test_check_says_how_secrets_lie(con, session, database):
    async def told(**changes):
        findings = await check.check(settings_of(database, **changes))
        return [(each.grade.value, each.text) for each in findings if each.what in {"secrets", "endpoints"}]

    assert await told() == []
    endpoint_id = await add(con, PLAIN)
    ((grade, text),) = await told()
    assert (grade, "plain text" in text) == ("warning", True)
    await wrap_plain(session, vault_of(OLD))
    assert [grade for grade, _ in await told(secrets={"key": OLD})] == ["ok"]
    found = await told(secrets={"key": f"other:{TWO}"})
    assert (
        "fault",
        f"deliveries to endpoint {endpoint_id} fail: secrets.key does not open its secret",
    ) in found


# Deliveries ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_encrypted_secrets_sign_deliveries_and_fail_without_the_key(
    con, session, database, receiver, until
):
    endpoint_id = await add(con, PLAIN, receiver.url("/in"))
    await wrap_plain(session, vault_of(OLD))
    async with living(database, retry={"schedule": (0.2,) * 50}) as life:
        await emit(con, payload='{"n": 1}')
        await life.diary.wait_for("delivery.attempted")
        row = await until(
            lambda: con.fetchrow("select outcome, error from webhooks.attempts where attempt = 1")
        )
        assert tuple(row) == ("failed", "secret")
        assert not receiver.requests
        assert PLAIN not in str(life.diary.lines)
    async with living(database, secrets={"key": OLD}, retry={"schedule": (0.05,) * 50}):
        await until(lambda: receiver.requests)
    request = receiver.requests[0]
    Webhook(PLAIN).verify(request.body, {k.lower(): v for k, v in request.headers.items()})
    rows = await con.fetch("select outcome from webhooks.attempts where endpoint_id = $1", endpoint_id)
    assert {row["outcome"] for row in rows} <= {"failed", "delivered"}
