"""The column auth in the database and on the wire: what the table lets through, how it lies, and what receivers see."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl

import asyncpg
import pytest
import structlog

from pghookd.encryption.ciphertext import AUTH, SECRET
from pghookd.encryption.encrypt_at_rest import wrap_plain
from pghookd.encryption.keyring import Vault
from pghookd.event_log.rows import endpoint_of
from pghookd.operations import endpoints
from pghookd.operations.check import check
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.runtime import app
from pghookd.runtime.upkeep.maintenance import Duties, tidy
from pghookd.settings.keys import parse_keys
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults, PreparedEndpoint
from support.crew import Clock, Diary, Life, living, settings_of
from support.events import emit
from support.fault_server import Certificates, receiving

ONE, TWO = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
OLD, NEW = f"old:{ONE}", f"new:{TWO} old:{ONE}"
BASIC = {"basic": {"username": "me", "password": "canary-password"}}
BEARER = {"bearer": {"token": "canary-token"}}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def vault_of(text):
    return Vault(parse_keys(text))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def con(database, connect):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    return con


@pytest.fixture
async def session(database, con):
    made = await client.connect(database, name="test")
    yield made
    await made.close()


async def add(con, auth, url="https://hooks.example/in", **columns):
    named = {"url": url, "auth": json.dumps(auth), **columns}
    places = ", ".join(f"${n}" for n in range(1, len(named) + 1))
    return await con.fetchval(
        f"insert into webhooks.endpoints (site_id, {', '.join(named)}) values ('s', {places})"
        " returning endpoint_id",
        *named.values(),
    )


async def refusal(con, auth):
    """Return the name of the constraint that refuses it, if one does: a sentence."""
    try:
        await add(con, auth)
    except asyncpg.CheckViolationError as error:
        return error.constraint_name
    return None


async def attempts(con):
    rows = await con.fetch("select outcome, status, error from webhooks.attempts order by attempted_at")
    return [tuple(row) for row in rows]


# The table ----------------------------------------------------------------------------------------------------------


def shapes(authority):
    """Return what the table lets through, and what it does not."""
    shown = {"client_certificate": authority.client("us")}
    oauth2 = {"token_url": "https://id.example/t", "client_id": "a", "client_secret": "b"}
    basic = {"username": "a", "password": "b"}
    pem = shown["client_certificate"]
    accepted = [
        BASIC, BEARER, shown, BASIC | shown, {"oauth2": oauth2}, {"oauth2": oauth2 | {"scope": "a b", "audience": ""}},
        {"basic": {"username": "", "password": ""}}, {"basic": {"username": "ü" * 2048, "password": "☕ :"}},
        {"bearer": {"token": "t" * 8192}}, {"bearer": {"token": "-._~+/aA0=="}}, {"oauth2": oauth2} | shown,
    ]  # fmt: skip
    refused = [
        {}, [], "canary", 1, True, {"type": "basic"}, {"basic": "canary"}, {"basic": None}, {"basic": {}},
        {"Basic": {}}, {"bearer": {}}, {"oauth2": {}},
        BASIC | BEARER, BEARER | {"oauth2": oauth2}, BASIC | {"x": {}}, {"basic": {"username": "a"}},
        *({"basic": basic | change} for change in (
            {"c": "d"}, {"password": 1}, {"username": "a:b"}, {"username": "a\n"}, {"username": None},
            {"password": "\x9f"}, {"password": "b" * 2049})),
        *({"bearer": {"token": token}} for token in (
            "", "a b", "a\r\nx: y", "a\n", "ä", "=a", 1, None, ["a"], "a" * 8193)),
        {"bearer": {"token": "a", "b": "c"}}, {"oauth2": {"token_url": "https://id.example/"}},
        *({"oauth2": oauth2 | change} for change in (
            {"token_url": "http://id.example/"}, {"token_url": "https://id.example/ x"}, {"client_id": ""},
            {"client_secret": ""}, {"scope": "a\tb"}, {"grant_type": "x"}, {"audience": "a" * 2049}, {"scope": None})),
        {"client_certificate": {}}, {"client_certificate": {"certificate": "a", "key": "b"}},
        *({"client_certificate": pem | change} for change in (
            {"key": 1}, {"chain": "a"}, {"key": "☕" * 16_000})),
    ]  # fmt: skip
    return accepted, refused


async def usable(session, endpoint_id):
    (row,) = await session.fetch(query("read_endpoints"), [endpoint_id], 4)
    endpoint = endpoint_of(row)
    assert endpoint.options.auth is not None
    try:
        PreparedEndpoint.of(endpoint, Defaults.of(Settings()))
    except ValueError:
        return False
    return True


async def test_what_the_table_lets_through_can_be_used_and_nothing_else(con, session, authority):
    accepted, refused = shapes(authority)
    for auth in accepted:
        assert await usable(session, await add(con, auth)), auth
    for auth in refused:
        assert (await refusal(con, auth) or "").startswith("auth"), auth
    with pytest.raises(asyncpg.CheckViolationError, match="for https"):
        await add(con, accepted[2], url="http://hooks.example/in")
    await con.execute(
        "do $$ declare c text; begin for c in select conname from pg_constraint where conname like 'auth%'"
        " loop execute format('alter table webhooks.endpoints drop constraint %I', c); end loop; end $$"
    )
    for auth in refused:
        assert not await usable(session, await add(con, auth)), auth


async def test_only_an_encrypted_value_may_be_a_text(con):
    await add(con, "enc:v1:a:AAAA")
    for text in ("enc:v2:a:AAAA", "", "null", "enc:v1:" + "A" * 24_000):
        with pytest.raises(asyncpg.CheckViolationError):
            await add(con, text)


async def test_an_endpoint_without_it_is_read_without_it(con, session):
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', 'https://a.example')")
    await add(con, BEARER)
    rows = await session.fetch(query("read_endpoints_of_sites"), ["s"], 4, [0], [9], 9)
    found = {row["url"]: endpoint_of(row).options for row in rows}
    assert found["https://a.example"] is None
    assert json.loads(found["https://hooks.example/in"].auth) == BEARER


# At rest ------------------------------------------------------------------------------------------------------------


async def stored(con, endpoint_id):
    return json.loads(
        await con.fetchval("select auth from webhooks.endpoints where endpoint_id = $1", endpoint_id)
    )


async def test_it_is_encrypted_at_first_sight_with_the_secret_and_rings_no_bell(
    con, session, connect, database
):
    alone = await add(con, BASIC)
    both = await add(con, BEARER, secret="plain")
    largest = await add(con, {"bearer": {"token": "t" * 8192}} | {"client_certificate": {
        "certificate": "-----BEGIN CERTIFICATE-----" + "x" * 7500, "key": "-----BEGIN PRIVATE KEY-----"}})  # fmt: skip
    heard, listener = [], await connect(database)
    await listener.add_listener("pghookd", lambda *args: heard.append(args[-1]))
    vault = vault_of(OLD)
    for _ in range(2):
        await tidy(session, Duties(vault=vault), logger=structlog.get_logger(), beat=lambda: None)
    assert json.loads(vault.reveal(await stored(con, alone), alone, AUTH)) == BASIC
    assert json.loads(vault.reveal(await stored(con, both), both, AUTH)) == BEARER
    assert (await stored(con, largest)).startswith("enc:v1:old:")
    assert await con.fetchval(
        "select bool_and(coalesce(secret, 'enc:v1:') like 'enc:v1:%') from webhooks.endpoints"
    )
    await listener.execute("select 1")
    assert heard == []


async def test_rows_changed_meanwhile_are_kept_and_old_code_changes_no_auth(con, session):
    endpoint_id = await add(con, BEARER, secret="plain")
    seen = await con.fetchval("select auth #>> '{}' from webhooks.endpoints")
    sealed = vault_of(OLD).seal(seen, endpoint_id, AUTH)
    wrapped = ([endpoint_id], ["plain"], ["enc:v1:a:AAAA"], [None], [None], ["legacy"])
    await con.execute("update webhooks.endpoints set auth = $1", json.dumps(BASIC))
    assert await session.fetchval(query("wrap_secrets"), *wrapped, [seen], [sealed]) == 0
    assert await stored(con, endpoint_id) == BASIC
    assert await con.fetchval("select webhooks.wrap_secrets($1, $2, $3, $4, $5, $6)", *wrapped) == 1
    assert await stored(con, endpoint_id) == BASIC
    with pytest.raises(client.DatabaseError, match="nothing but encrypted"):
        await session.fetchval(query("wrap_secrets"), *([None] for _ in range(7)), ["plain"])


async def test_a_rotated_key_wraps_it_again(con, session, database):
    ids = [await add(con, BEARER), await add(con, BASIC, secret="plain")]
    lost = await add(con, "enc:v1:gone:AAAA")
    await con.execute("update webhooks.endpoints set secret = 'another' where endpoint_id = $1", lost)
    await wrap_plain(session, vault_of(OLD))
    done = await endpoints.rotate_key(settings_of(database, secrets={"key": NEW}), lambda _: None)
    assert (done.total, done.looked_at, done.wrapped, done.unopened) == (3, 3, 3, [lost])
    newest = vault_of(f"new:{TWO}")
    opened = [json.loads(newest.reveal(await stored(con, each), each, AUTH)) for each in ids]
    assert opened == [BEARER, BASIC]
    secret = await con.fetchval("select secret from webhooks.endpoints where endpoint_id = $1", lost)
    assert newest.reveal(secret, lost, SECRET) == "another", (
        "what is lost keeps nothing else from being wrapped"
    )


async def test_check_says_how_it_lies_and_what_cannot_be_used(con, session, database, authority):
    async def told(**changes):
        found = await check(settings_of(database, **changes))
        return [(each.grade.value, each.text) for each in found if each.what in {"secrets", "endpoints"}]

    endpoint_id = await add(con, BEARER)
    ((grade, text),) = await told()
    assert (grade, "plain text" in text) == ("warning", True)
    await wrap_plain(session, vault_of(OLD))
    assert [grade for grade, _ in await told(secrets={"key": OLD})] == ["ok"]
    fault = f"deliveries to endpoint {endpoint_id} fail: secrets.key does not open its auth"
    assert ("fault", fault) in await told(secrets={"key": f"other:{TWO}"})
    shown, other = authority.client("a"), authority.client("b")
    crossed = await add(
        con, {"client_certificate": {"certificate": shown["certificate"], "key": other["key"]}}
    )
    late = await add(con, {"client_certificate": authority.client("late", expired=True)})
    found = await told(secrets={"key": OLD})
    expiry = f"the client certificate of endpoint {late} expires at 2021-01-01T00:00:00.000Z"
    assert [text for _, text in found if "expires" in text] == [expiry]
    faults = [text for grade, text in await told(secrets={"key": OLD}) if grade == "fault"]
    assert len(faults) == 1
    assert f"endpoint {crossed} end dead, as invalid: auth.client_certificate.key is not the key" in faults[0]


async def test_show_prints_the_kinds_and_no_value(con, session, database):
    settings = settings_of(database)
    ids = [await add(con, BASIC), await add(con, "enc:v1:a:AAAA")]
    ids.append(
        await con.fetchval(
            "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x') returning endpoint_id"
        )
    )
    told = [await endpoints.show_endpoint(settings, each) for each in ids]
    assert [each["auth"] for each in told] == ["basic", "encrypted", None]
    assert "canary" not in str(told)


async def test_an_endpoint_is_added_with_it_and_its_fault_quotes_nothing(con, database):
    settings = settings_of(database)
    columns = {"site_id": "s", "url": "https://hooks.example/in"}
    made = await endpoints.add_endpoint(settings, columns | {"auth": BASIC}, new_secret=False)
    assert await stored(con, made["endpoint_id"]) == BASIC
    for broken in ({"basic": {"username": "canary"}}, {"bearer": {"token": "canary canary"}}):
        with pytest.raises(client.DatabaseError, match="auth") as caught:
            await endpoints.add_endpoint(settings, columns | {"auth": broken}, new_secret=False)
        assert "canary" not in str(caught.value)
    assert "canary" not in str(await con.fetch("select * from webhooks.operations"))


# On the wire --------------------------------------------------------------------------------------------------------


async def test_basic_and_bearer_are_in_the_head_sealed_or_not(con, session, database, receiver, until):
    await add(con, BASIC, url=receiver.url("/basic"), headers='{"Authorization": "Bearer own"}')
    await add(con, BEARER, url=receiver.url("/bearer"))
    await add(con, BEARER, url=receiver.url("/profile"), profile="github", secret="x")
    async with living(database, log={"successes": 1}) as life:
        await emit(con)
        plain = await receiver.wait_for(3)
    await wrap_plain(session, vault_of(OLD))
    async with living(database, secrets={"key": OLD}, log={"successes": 1}) as later:
        await emit(con)
        sealed = (await receiver.wait_for(6))[3:]
        await until(lambda: con.fetchval("select count(*) = 6 from webhooks.attempts"))
    basic = "Basic " + base64.b64encode(b"me:canary-password").decode()
    for requests in (plain, sealed):
        found = {each.path: each for each in requests}
        assert found["/basic"].headers["authorization"] == basic
        assert found["/bearer"].headers["authorization"] == "Bearer canary-token"
        assert found["/profile"].headers["authorization"] == "Bearer canary-token"
        assert all(each.raw_head.lower().count(b"authorization:") == 1 for each in requests)
    assert "canary" not in str(life.diary.lines + later.diary.lines)
    assert "canary" not in str(await con.fetch("select * from webhooks.attempts"))


@pytest.mark.slow
async def test_without_the_key_nothing_is_sent(con, session, database, receiver, until):
    await add(con, BEARER, url=receiver.url("/in"))
    await wrap_plain(session, vault_of(OLD))
    async with living(database, retry={"schedule": (0.2,) * 50}) as life:
        await emit(con)
        await life.diary.wait_for("delivery.attempted")
        await until(lambda: con.fetchval("select count(*) > 0 from webhooks.attempts"))
    assert (await attempts(con))[0] == ("failed", None, "auth")
    assert receiver.requests == []
    async with living(database, secrets={"key": OLD}):
        await until(lambda: receiver.requests)
    assert receiver.requests[0].headers["authorization"] == "Bearer canary-token"


@contextlib.asynccontextmanager
async def https(authority, script, *, demanding=False):
    """A server in TLS whose answers are those of `script(name that was shown, head, body)`."""
    context = authority.server_context("server", "IP:127.0.0.1")
    if demanding:
        authority.demand(context, ssl.CERT_OPTIONAL)

    async def handler(visit):
        found = visit.writer.get_extra_info("peercert")
        name = found["subject"][0][0][1] if found else None
        while True:
            await visit.send(script(name, *await visit.request()))

    async with receiving(handler, tls=context) as server:
        yield server


def answer(status, body=b""):
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_endpoints_of_one_host_show_each_its_own_certificate(con, database, authority, until):
    seen = []

    def script(name, head, _body):
        seen.append((head.split()[1].decode(), name, b"Bearer canary-token" in head))
        return OK

    async with https(authority, script, demanding=True) as server:
        where = f"https://127.0.0.1:{server.port}"
        await add(con, {"client_certificate": authority.client("a")}, url=f"{where}/a")
        await add(con, BEARER | {"client_certificate": authority.client("b")}, url=f"{where}/b")
        await add(con, BEARER, url=f"{where}/none")
        async with living(database, egress={"ca_file": str(authority.ca_file)}) as life:
            for _ in range(10):
                await emit(con)
            await until(lambda: con.fetchval("select count(*) = 30 from webhooks.attempts"))
    assert {row[0] for row in await attempts(con)} == {"delivered"}
    assert sorted(set(seen), key=str) == [("/a", "a", False), ("/b", "b", True), ("/none", None, True)]
    assert len(seen) == 30
    assert "PRIVATE" not in str(life.diary.lines)


@contextlib.asynccontextmanager
async def granting(con, authority, receive, grant):
    """A receiver and a token server, an endpoint that uses them, and settings for both."""
    asked = []

    def tell(_name, head, body):
        asked.append((head, body))
        return grant(len(asked))

    async with https(authority, receive) as receiver, https(authority, tell) as server:
        credentials = {
            "token_url": f"https://127.0.0.1:{server.port}/token",
            "client_id": "me",
            "client_secret": "canary-secret",
            "scope": "hooks",
        }
        await add(con, {"oauth2": credentials}, url=f"https://127.0.0.1:{receiver.port}/in")
        yield asked, {"egress": {"ca_file": str(authority.ca_file)}}


async def test_a_token_is_fetched_once_and_again_after_a_401(con, session, database, authority, until):
    seen = []

    def receive(_name, head, _body):
        (token,) = [line[22:] for line in head.split(b"\r\n") if line.startswith(b"authorization: Bearer ")]
        seen.append(token)
        return answer(401 if token == b"canary-1" else 200)

    def grant(number):
        told = {"access_token": f"canary-{number}", "token_type": "Bearer", "expires_in": 3600}
        return answer(200, json.dumps(told).encode())

    async with granting(con, authority, receive, grant) as (asked, settings):
        await wrap_plain(session, vault_of(OLD))
        async with living(database, secrets={"key": OLD}, log={"successes": 1}, **settings) as life:
            await emit(con)
            await until(lambda: con.fetchval("select count(*) = 2 from webhooks.attempts"))
            for _ in range(20):
                await emit(con)
            await until(lambda: con.fetchval("select count(*) = 22 from webhooks.attempts"))
    assert (await attempts(con))[:2] == [("refused", 401, None), ("delivered", 200, None)]
    assert seen == [b"canary-1", *[b"canary-2"] * 21]
    assert len(asked) == 2
    assert asked[0][1] == b"grant_type=client_credentials&scope=hooks"
    assert "canary" not in str(life.diary.lines)


async def test_a_token_server_without_a_token_is_named_and_nothing_is_sent(con, database, authority, until):
    seen = []

    def receive(_name, head, _body):
        seen.append(head)
        return OK

    def grant(number):
        if number < 3:
            return answer(401, b'{"error": "invalid_client", "error_description": "canary-secret"}')
        return answer(200, b'{"access_token": "t"}')

    async with (
        granting(con, authority, receive, grant) as (_, settings),
        living(database, **settings) as life,
    ):
        await emit(con)
        await until(lambda: con.fetchval("select count(*) = 3 from webhooks.attempts"))
    refused = ("refused", None, "oauth2: 401 invalid_client")
    assert await attempts(con) == [refused, refused, ("delivered", 200, None)]
    assert len(seen) == 1
    assert "canary" not in str(life.diary.lines) + str(await con.fetch("select * from webhooks.attempts"))


async def test_a_token_server_that_may_not_be_reached_is_blocked(con, database, authority, until):
    credentials = {"token_url": "https://10.0.0.1/t", "client_id": "me", "client_secret": "s"}
    await add(con, {"oauth2": credentials}, url="https://127.0.0.1:5000/in")
    async with living(database):
        await emit(con)
        await until(lambda: con.fetchval("select count(*) = 1 from webhooks.dead"))
    assert await attempts(con) == [("blocked", None, "oauth2: literal")]
    assert await con.fetchval("select reason from webhooks.dead") == "blocked"


async def test_a_daemon_with_a_sink_requests_no_token_and_shows_no_certificate(
    con, database, receiver, authority
):
    credentials = {"token_url": "https://id.example/t", "client_id": "me", "client_secret": "s"}
    auth = {"oauth2": credentials, "client_certificate": authority.client("a")}
    await add(con, auth, url="https://hooks.example/in")
    settings = settings_of(database)
    async with app.sender_of(settings) as sender:
        sender.diverted_to = int(receiver.url("").rpartition(":")[2])
        life = Life(settings, sender, Clock(), Diary())
        try:
            await life.ready()
            await emit(con)
            (request,) = await receiver.wait_for(1)
        finally:
            await life.kill()
    assert (request.path, request.headers["host"]) == ("/in", "hooks.example")
    assert "authorization" not in request.headers
