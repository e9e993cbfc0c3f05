"""Options of endpoints: what the table lets through the daemon can use, and each does what its comment says.

The table refuses first; where a constraint is taken away the sender refuses for itself, and only those deliveries die.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math

import asyncpg
import pytest

from pghookd.event_log.rows import endpoint_of
from pghookd.operations.check import Grade, check
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.settings.schema import Settings
from pghookd.webhook import signing
from pghookd.webhook.prepared import Defaults, PreparedEndpoint
from support.crew import living, settings_of
from support.events import emit
from support.receiver import Response

DEFAULTS = Defaults.of(Settings())
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PRIVATE = "whsk_" + base64.b64encode(bytes(range(32))).decode()
_PUBLIC = base64.b64decode(signing.public_key_of(PRIVATE).removeprefix("whpk_"))
PRIVATE_64 = "whsk_" + base64.b64encode(bytes(range(32)) + _PUBLIC).decode()


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute(
        "insert into webhooks.sites (site_id, name, url) values ('s', 'S', 'https://shop.example')"
    )
    await con.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, $2)",
        receiver.url("/hook"),
        SECRET,
    )
    return con


@pytest.fixture
async def session(database):
    opened = await client.connect(database, name="test")
    yield opened
    await opened.close()


async def set_option(con, **options):
    """Set columns of the endpoint; the name of the constraint that refuses, if one does: a sentence."""
    pairs = ", ".join(f"{name} = ${n}" for n, name in enumerate(options, 1))
    try:
        await con.execute(f"update webhooks.endpoints set {pairs}", *options.values())
    except asyncpg.CheckViolationError as error:
        return error.constraint_name
    return None


async def drop_constraints(con, column):
    await con.execute(
        f"do $$ declare c text; begin for c in select conname from pg_constraint where conname like '{column} %'"
        " loop execute format('alter table webhooks.endpoints drop constraint %I', c); end loop; end $$"
    )


async def read(session):
    (row,) = await session.fetch(query("read_endpoints"), [1], 4)
    return endpoint_of(row)


async def usable(session):
    """Return True if the daemon can use the endpoint as it is now."""
    try:
        PreparedEndpoint.of(await read(session), DEFAULTS)
    except ValueError:
        return False
    return True


# Values that the table accepts --------------------------------------------------------------------------------------

NAMES = [
    "Authorization", "x-api-key", "X_Tenant", "a!#$%&'*+.^_`|~9", "x-webhooks", "hosts", "tea", "contented", "x" * 100,
    "", " ", "a b", "a:", "X:Y", "a\r\nb", "é", "x" * 101, "(x)", "a,b", 'a"b', "a\\b", "a/b", "[a]", "a@b", "a\x7f",
    "host", "Host", "HOST", "Content-Length", "content_length", "Content-Type", "content-encoding", "content-md5",
    "Transfer-Encoding", "transfer_encoding", "Connection", "TE", "trailer", "Upgrade", "expect", "keep-alive",
    "Keep_Alive", "http2-settings", "Proxy-Authorization", "proxy-connection", "webhook-id", "Webhook-Signature",
    "webhook_signature", "webhook-anything", "x-webhook-topic", "X-Webhook-Signature", "user-agent", "Accept",
    "accept-encoding", "Cookie", "Forwarded", "via", "x-forwarded-for", "X_Forwarded_Host", "x-real-ip", "metadata",
    "Metadata-Flavor", "x-aws-ec2-metadata-token",
]  # fmt: skip
VALUES = ["1", "Bearer abc=", 'a "b" \\ c', '", "host": "x', "a" * 3000, "", " ", " a", "a ", "a\r\nx: y", "a\nb",
          "a\tb", "é", "a\x7f", "a\u0080", "☕"]  # fmt: skip
HEADERS = [
    *({name: "1"} for name in NAMES), *({"x-a": value} for value in VALUES), {}, [], ["host"], "host", 1, {"x-a": 1},
    {"x-a": None}, {"x-a": ["1"]}, {"x-a": {"host": "x"}}, {"x-a": "1", "X-A": "2"}, {"x-a": "1", "x-b": "2"},
    {"x-a": "1", "Host": "evil"}, {f"x-{n}": "1" for n in range(20)}, {f"x-{n}": "1" for n in range(21)},
    {"x-a": "1" * 2500, "x-b": "1" * 2500},
]  # fmt: skip


async def test_headers_that_the_table_lets_through_are_those_that_are_sent(con, session):
    accepted = 0
    for headers in HEADERS:
        if await set_option(con, headers=json.dumps(headers)) is None:
            assert await usable(session), headers
            accepted += 1
    assert accepted == 9 + 5 + 3


async def test_what_the_table_refuses_the_sender_refuses_too(con, session):
    refused = [h for h in HEADERS if await set_option(con, headers=json.dumps(h)) is not None]
    await drop_constraints(con, "headers")
    for headers in refused:
        await set_option(con, headers=json.dumps(headers))
        assert not await usable(session), headers


OPTIONS = {
    "retry_schedule": {
        True: ["5s", "5s,5m,2h,1d", "1250ms, 1.5h ,30d", "1.5s", "699h", "9999m", "999999s", "29.9d", "01s", "0.017m",
               "0.5m", "0.001h", "none", " none ", ",".join(["1s"] * 100)],
        False: ["", "soon", "none,5s", "5s,none", "250ms", "0.5s", "5s,999ms", "0.999s,5s", "0.016m", "0.01m",
                "5s, 0.9s", "0m", ".5s", "5", "0s", "5s,0m", "00.0ms", "31d", "30.5d", "721h", "5s,,5m", "5s;5m",
                "-5s", "5 s", "\u0665s", "5S", ",".join(["1s"] * 101), "5s\n"],
    },
    "success_statuses": {
        True: ["200", "200,201,204", "200-204", "200 , 202-204", "299"],
        False: ["", "2xx", "199", "300", "200-300", "200,", "100-299", "200 201", "٢٠٠", "200\n",
                ",".join(["200"] * 60)],
    },
    "secret": {
        True: [SECRET, PRIVATE, PRIVATE_64, "old", None],
        False: ["whsk_", "whsk_canary", "whsk_" + "A" * 44, PRIVATE + "\n"],
    },
}  # fmt: skip


@pytest.mark.parametrize("column", OPTIONS)
async def test_texts_that_the_table_lets_through_can_be_used(con, session, column):
    for accepted, texts in OPTIONS[column].items():
        for text in texts:
            assert (await set_option(con, **{column: text}) is None) is accepted, text
            assert await usable(session)


SPECS = {
    True: [
        {}, {"header": "x-sig"}, {"header": "X-Webhook-Signature", "algorithm": "sha512", "encoding": "base64"},
        {"signed": "v0:{timestamp}:{body}", "opening": "t={timestamp},", "prefix": "v1=", "joint": ",",
         "key": "standard"},
        {"body": "envelope", "headers": {"X-Kind": "{type}", "x-webhook-id": "{endpoint_id}"}},
    ],
    False: [
        [], "x", {"colour": "red"}, {"header": "content-length"}, {"header": "X:Y"}, {"header": "Transfer_Encoding"},
        {"header": "x-webhook-topic"}, {"algorithm": "md5"}, {"encoding": "binary"}, {"key": "none"}, {"body": "form"},
        {"signed": "{id}"}, {"headers": []}, {"headers": {"Host": "x"}}, {"headers": {"a b": "x"}},
        {"prefix": "x" * 5000}, {"prefix": 1}, {"joint": None}, {"header": ["a"]}, {"headers": {"a": ["b"]}},
    ],
}  # fmt: skip


async def test_custom_profiles(con, session):
    for accepted, specs in SPECS.items():
        for spec in specs:
            refusal = await set_option(con, profile="custom", profile_spec=json.dumps(spec))
            assert (refusal is None) is accepted, spec
            assert await usable(session)


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "custom"}, {"profile": "mailchimp"}, {"profile_spec": "{}"}, {"previous_secret": "old"},
        {"previous_secret_until": 1.0}, {"previous_secret": "", "previous_secret_until": 1.0},
        {"previous_secret": "whsec_x", "previous_secret_until": 1.0}, {"timeout_s": 31.0},
        {"previous_secret": "whsk_x", "previous_secret_until": 1.0},
        *({"rate_per_s": rate} for rate in (0.0, -1.0, 1e-4, 10_001.0, math.inf, math.nan)),
    ],
)  # fmt: skip
async def test_what_does_not_go_together(con, options):
    pairs = ", ".join(
        f"{name} = to_timestamp(${n})" if name.endswith("until") else f"{name} = ${n}"
        for n, name in enumerate(options, 1)
    )
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await con.execute(f"update webhooks.endpoints set {pairs}", *options.values())
    assert " " in caught.value.constraint_name


async def test_a_rate_is_read_from_its_least_to_its_most(con, session):
    for rate in (0.001, 0.5, 10_000.0):
        assert await set_option(con, rate_per_s=rate) is None
        assert (await read(session)).options.rate_per_s == pytest.approx(rate)
    await set_option(con, rate_per_s=None)
    assert (await read(session)).options is None


async def test_a_rotation_ends_some_time(con):
    with pytest.raises(asyncpg.CheckViolationError):
        await con.execute(
            "update webhooks.endpoints set previous_secret = 'x', previous_secret_until = 'infinity'"
        )


async def test_an_endpoint_that_asks_for_nothing_is_read_without_options(con, session):
    assert (await read(session)).options is None
    await con.execute(
        "update webhooks.endpoints set previous_secret = 'old', previous_secret_until = now() - '1 s'::interval"
    )
    assert (await read(session)).options is None, "a rotation that is over costs nothing"
    await con.execute("update webhooks.endpoints set previous_secret_until = now() + '1 h'::interval")
    assert (await read(session)).options.previous_secret == "old"
    (row,) = await session.fetch(query("read_endpoints_of_sites"), ["s"], 4, [0], [9], 9)
    assert endpoint_of(row) == await read(session)
    assert endpoint_of(row).options is (await read(session)).options


async def test_odd_json_in_a_profile_does_not_stop_the_reading(con, session):
    await drop_constraints(con, "profile_spec")
    deep = '{"header": ' + "[" * 1500 + "]" * 1500 + "}"
    for spec in (deep, '{"joint": 1e400}', '{"prefix": null}'):
        await set_option(con, profile="custom", profile_spec=spec)
        assert (await read(session)).options.profile == "custom"
        assert not await usable(session)


# Rotation -----------------------------------------------------------------------------------------------------------

LOOK = "select secret, previous_secret, previous_secret_until from webhooks.endpoints"


async def test_rotating_makes_a_secret_and_keeps_the_old_one_for_a_day(con):
    fresh = await con.fetchval("select webhooks.rotate_secret(1)")
    assert len(signing.key_of(fresh)) == 32
    assert tuple(await con.fetchrow(LOOK))[:2] == (fresh, SECRET)
    left = await con.fetchval("select previous_secret_until - now() from webhooks.endpoints")
    assert 86_390 < left.total_seconds() <= 86_400
    assert await con.fetchval("select webhooks.rotate_secret(1, '1 hour', 'mine')") == "mine"
    assert tuple(await con.fetchrow(LOOK))[:2] == ("mine", fresh)
    assert await con.fetchval("select webhooks.rotate_secret(1, '0 s', 'other')") == "other"
    assert tuple(await con.fetchrow(LOOK)) == ("other", None, None)
    rows = await con.fetch("select what, detail from webhooks.operations order by at")
    assert [json.loads(row["detail"]) for row in rows] == [
        {"endpoint_id": 1, "overlap": overlap} for overlap in ("24:00:00", "01:00:00", "00:00:00")
    ]


async def test_rotating_keeps_the_kind_of_key(con):
    await set_option(con, secret=PRIVATE)
    fresh = await con.fetchval("select webhooks.rotate_secret(1)")
    assert signing.public_key_of(fresh) != signing.public_key_of(PRIVATE)
    await con.execute("update webhooks.endpoints set secret = null")
    await con.fetchval("select webhooks.rotate_secret(1)")
    assert (await con.fetchrow(LOOK))["previous_secret"] is None


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("77", "there is no endpoint 77"), ("1, '-1 s'", "overlap is 0 to 30 days, not -00:00:01"),
        ("1, '31 days'", "overlap is 0 to 30 days, not 31 days"), ("1, null", "overlap is 0 to 30 days, not <NULL>"),
        ("1, '1 h', 'whsec_canary'", "the secret cannot be used: a whsec_ secret is base64 of 24 to 64 bytes"),
        (f"1, '1 h', '{SECRET}'", "that is the secret of endpoint 1 already"),
    ],
)  # fmt: skip
async def test_wrong_rotations_are_reported_without_a_secret(con, call, told):
    with pytest.raises(asyncpg.PostgresError) as caught:
        await con.execute(f"select webhooks.rotate_secret({call})")
    assert caught.value.message == told
    assert "canary" not in f"{caught.value.detail}{caught.value.hint}"
    assert tuple(await con.fetchrow(LOOK)) == (SECRET, None, None)
    assert await con.fetchval("select count(*) from webhooks.operations") == 0


# Deliveries with options --------------------------------------------------------------------------------------------


async def test_smuggling_headers_are_never_sent_even_without_a_constraint(con, database, receiver, until):
    await drop_constraints(con, "headers")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url, headers) values"
        """ ('s', $1, '{"x-key": "a\\r\\nContent-Length: 3"}'), ('s', $1, '{"Transfer-Encoding": "chunked"}'),"""
        """ ('s', $1, '{"webhook_signature": "v1,forged"}')""",
        receiver.url("/victim"),
    )
    async with living(database):
        event_id = await emit(con)
        (request,) = await receiver.wait_for(1, path="/hook")
        await until(lambda: con.fetchval("select count(*) = 3 from webhooks.dead"))
    assert request.event_id == event_id, "the log goes on for everybody else"
    assert receiver.of("/victim") == []
    assert {row[0] for row in await con.fetch("select distinct reason from webhooks.dead")} == {"invalid"}


async def test_check_names_endpoints_that_cannot_be_used(con, database):
    await drop_constraints(con, "headers")
    await set_option(con, headers='{"Content-Length": "3"}')
    await con.execute(
        "insert into webhooks.endpoints (site_id, url, success_statuses) values ('s', 'http://x', '204-200')"
    )
    told = [f for f in await check(settings_of(database)) if f.what == "endpoints"]
    assert [f.grade for f in told] == [Grade.FAULT] * 2
    assert "endpoint 1" in told[0].text
    assert "Content-Length" in told[0].text
    assert "success_statuses" in told[1].text


@pytest.mark.slow
async def test_headers_schedule_statuses_and_timeout_are_the_endpoints_own(con, database, receiver, until):
    await set_option(
        con,
        headers='{"Authorization": "Bearer abc", "X-Tenant": "7"}',
        retry_schedule="1s,1s",
        success_statuses="204",
    )
    async with living(database, retry={"schedule": (3600.0,), "jitter": 0.0}):
        await emit(con)
        requests = await receiver.wait_for(3)
        await until(lambda: con.fetchval("select count(*) = 1 from webhooks.dead"))
    assert [r.headers["authorization"] for r in requests] == ["Bearer abc"] * 3
    assert [r.headers["x-tenant"] for r in requests] == ["7"] * 3
    rows = await con.fetch("select outcome, status, error from webhooks.attempts order by attempt")
    assert [tuple(row) for row in rows] == [("refused", 200, "success_statuses")] * 3
    assert await con.fetchval("select reason from webhooks.dead") == "exhausted"


async def test_a_schedule_of_none_is_a_single_attempt(con, database, receiver, until):
    receiver.paths["/hook"] = lambda _request: Response(500)
    await set_option(con, retry_schedule="none")
    async with living(database, retry={"schedule": (0.01,)}):
        await emit(con)
        await until(lambda: con.fetchval("select count(*) = 1 from webhooks.dead"))
    assert await con.fetchval("select reason from webhooks.dead") == "exhausted"
    assert await con.fetchval("select count(*) from webhooks.attempts") == 1


async def test_a_timeout_of_its_own(con, database, receiver, until):
    never = asyncio.Event()
    receiver.paths["/hook"] = lambda _request: never.wait()
    await set_option(con, timeout_s=0.1, retry_schedule="1h")
    async with living(database):
        await emit(con)
        await until(lambda: con.fetchval("select outcome = 'timeout' from webhooks.attempts"))
