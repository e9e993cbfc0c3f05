"""`endpoint`, `event show` and `secret rotate` as an operator types them, with a real daemon where one is needed."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest

from support.command import command
from support.events import emit

NOBODY = "postgresql://nobody@127.0.0.1:1/none"
SECRET = "whsec_" + "A" * 32
EVIDENCE = (
    '{"address": "203.0.113.9:443", "reached": "headers", "ms": {"connect": 12, "headers": 84},'
    ' "headers": {"server": "nginx"}, "headers_left_out": 1}'
)


@pytest.fixture
def pghookd(database):
    """Return `await pghookd(*words)`: a command on the test's database."""
    return functools.partial(command, url=database)


@pytest.fixture
async def site(db):
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    return "s"


@pytest.fixture
async def endpoint_id(db, site):
    return await db.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret, headers, timeout_s)"
        " values ('s', 'https://hooks.example/in', 'hunter2', '{\"authorization\": \"Bearer hunter3\"}', 2.5)"
        " returning endpoint_id"
    )


async def operations(db):
    return [row["what"] for row in await db.fetch("select what from webhooks.operations order by at")]


# Adding -----------------------------------------------------------------------------------------------------


async def test_add_makes_an_endpoint_and_shows_its_new_secret_once(pghookd, db, site):
    done = await pghookd(
        "endpoint", "add", site, "https://hooks.example/in", "--types", "order_created,order_updated",
        "--description", "Shop", "--timeout-s", "3", "--header", "X-Key: abc", "--json",
    )  # fmt: skip
    row = await db.fetchrow("select * from webhooks.endpoints")
    assert done.status == 0
    assert done.told == {"endpoint_id": row["endpoint_id"], "secret": row["secret"], "blocked": None}
    assert row["secret"].startswith("whsec_")
    assert row["event_types"] == ["order_created", "order_updated"]
    assert (row["description"], row["timeout_s"], row["ordered"]) == ("Shop", 3.0, False)
    assert json.loads(row["headers"]) == {"X-Key": "abc"}
    noted = await db.fetchval("select detail from webhooks.operations where what = 'add_endpoint'")
    assert json.loads(noted) == {"endpoint_id": row["endpoint_id"], "site_id": site}


async def test_add_says_when_a_site_has_all_the_endpoints_it_may(pghookd, db, site):
    await db.execute("update webhooks.sites set endpoints_max = 0")
    done = await pghookd("endpoint", "add", site, "https://hooks.example/in", "--json")
    assert done.status == 1
    assert done.told["faults"][0].startswith(f"site {site} may have 0 endpoints: delete one, or raise")


async def test_add_takes_a_profile_of_your_own_and_show_prints_it(pghookd, site):
    spec = {"header": "x-shop-signature", "algorithm": "sha256"}
    words = ("--profile", "custom", "--profile-spec", json.dumps(spec), "--success-statuses", "200", "--json")
    made = await pghookd("endpoint", "add", site, "https://a.example/", *words)
    shown = await pghookd("endpoint", "show", made.told["endpoint_id"], "--json")
    told = shown.told
    assert (told["profile"], told["profile_spec"], told["success_statuses"]) == ("custom", spec, "200")


@pytest.mark.slow
async def test_add_takes_auth_from_a_file_and_show_prints_its_kind(pghookd, db, site, tmp_path):
    file = tmp_path / "auth.json"
    file.write_text('{"bearer": {"token": "hunter2"}}')
    typed = b'{"basic": {"username": "me", "password": "hunter3"}}'
    ways = (("https://a.example/", str(file), b""), ("https://b.example/", "-", typed))
    kinds = []
    for url, source, stdin in ways:
        made = await pghookd("endpoint", "add", site, url, "--auth", source, "--json", stdin=stdin)
        assert made.status == 0
        shown = await pghookd("endpoint", "show", made.told["endpoint_id"], "--json")
        kinds.append(shown.told["auth"])
        assert "hunter" not in made.out + made.err + shown.out + shown.err
    assert kinds == ["bearer", "basic"]
    for text in (b'{"bearer": "hunter4"}', b'{"hunter4', b'["hunter4"]'):
        wrong = await pghookd("endpoint", "add", site, "https://c.example/", "--auth", "-", stdin=text)
        assert wrong.status in {1, 2, 3}
        assert "hunter" not in wrong.out + wrong.err
    assert await db.fetchval("select count(*) from webhooks.endpoints") == 2


@pytest.mark.slow
async def test_add_takes_a_secret_of_yours_and_does_not_repeat_it(pghookd, db, site):
    given = await pghookd("endpoints", "add", site, "https://a.example/", "--secret", SECRET)
    read = await pghookd("endpoint", "add", site, "https://b.example/", "--secret", "-", stdin=b"hunter2\n")
    none = await pghookd("endpoint", "add", site, "http://127.0.0.1/", "--no-secret")
    assert [given.status, read.status, none.status] == [0, 0, 0]
    assert SECRET not in given.out + given.err
    assert "literal" in none.err
    rows = await db.fetch("select secret, event_types from webhooks.endpoints order by endpoint_id")
    assert [(row["secret"], row["event_types"]) for row in rows] == [
        (SECRET, ["*"]), ("hunter2", ["*"]), (None, ["*"]),
    ]  # fmt: skip


async def test_json_holds_nothing_that_acts_on_a_terminal(pghookd, db, site):
    evil = "\u202etxt.exe\u2066 \x9b \U000e0041 caf\u00e9"
    endpoint_id = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url, description) values ('s', 'https://a.example/', $1)"
        " returning endpoint_id",
        evil,
    )
    shown = await pghookd("endpoint", "show", endpoint_id, "--json")
    assert shown.told["description"] == evil
    assert all(c.isprintable() or c == "\n" for c in shown.out)
    assert "caf\u00e9" in shown.out


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("nowhere", "https://a.example/"), 1, "there is no site nowhere"),
        (("s", "ftp://a.example/"), 1, "URL must start with http:// or https://"),
        (
            ("s", "https://a.example/", "--secret", "whsec_AAAA"),
            1,
            "--secret must not be empty; after whsec_ it must be base64 of 24 to 64 bytes",
        ),
        (("s", "https://a.example/", "--secret", f"whsk_{'A' * 86}=="), 2, "do not belong together"),
        (
            ("s", "https://a.example/", "--new-secret", "--no-secret"),
            2,
            "use only one of --secret, --new-secret and --no-secret",
        ),
        (("s", "https://a.example/", "--types", ","), 2, "--types"),
        (("s", "https://a.example/", "--header", "odd"), 2, "--header"),
        (("s", "https://a.example/", "--header", "host: b"), 1, "--header must not set a reserved name"),
        (("s", "https://a.example/", "--profile-spec", "[]"), 2, "--profile-spec"),
    ],
)
async def test_add_names_the_fault(pghookd, site, words, status, told):
    done = await pghookd("endpoint", "add", *words)
    assert done.status == status
    assert told in done.err
    assert "AAAA" not in done.err


# Looking ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_list_shows_health_and_waiting_deliveries(pghookd, db, endpoint_id):
    await db.execute("insert into webhooks.sites (site_id, name) values ('t', 'Another')")
    await db.execute("insert into webhooks.endpoints (site_id, url, enabled) values ('t', 'http://t', false)")
    both = (await pghookd("endpoint", "list", "--json")).told["endpoints"]
    assert [(each["site_id"], each["health"]) for each in both] == [("s", "healthy"), ("t", "disabled")]
    done = await pghookd("endpoint", "list", "--site", "s")
    assert done.status == 0
    assert done.out.startswith(f"healthy   {endpoint_id}  s  https://hooks.example/in")
    assert len(done.out.splitlines()) == 1


@pytest.mark.slow
async def test_show_prints_every_option_and_no_secret(pghookd, endpoint_id):
    done = await pghookd("endpoint", "show", endpoint_id, "--json")
    assert done.status == 0
    assert done.told["secret"] == "legacy"
    assert done.told["headers"] == ["authorization"]
    assert (done.told["timeout_s"], done.told["health"], done.told["waiting"]) == (2.5, "healthy", 0)
    plain = await pghookd("endpoint", "show", endpoint_id)
    assert "timeout s: 2.5" in plain.out
    assert "hunter" not in done.out + plain.out
    nobody = await pghookd("endpoint", "show", endpoint_id + 1, "--json")
    assert (nobody.status, nobody.told["faults"]) == (1, [f"there is no endpoint {endpoint_id + 1}"])


# Acting -----------------------------------------------------------------------------------------------------


async def test_disable_and_enable_leave_their_rows(pghookd, db, endpoint_id):
    off = await pghookd("endpoint", "disable", endpoint_id, "--json")
    assert (off.status, off.told) == (0, {"endpoint_id": endpoint_id, "enabled": False})
    row = await db.fetchrow("select enabled, disabled_reason from webhooks.endpoints")
    assert tuple(row) == (False, "operator")
    tested = await pghookd("endpoint", "test", endpoint_id)
    assert (tested.status, "is disabled" in tested.err) == (1, True)
    await db.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason)"
        " select webhooks.emit('s', 'a', '{}'), $1, 's', 'held', 'disabled' from generate_series(1, 2)",
        endpoint_id,
    )
    on = await pghookd("endpoint", "enable", endpoint_id, "--held", "drop", "--json")
    assert on.told == {"endpoint_id": endpoint_id, "enabled": True, "released": 0}
    assert await db.fetchval("select count(*) from webhooks.dead where reason = 'dropped'") == 2
    assert await operations(db) == ["disable_endpoint", "enable_endpoint"]


@pytest.mark.parametrize("words", [("enable",), ("disable",), ("test",)])
async def test_an_endpoint_that_is_not_there_exits_1(pghookd, words):
    done = await pghookd("endpoint", *words, "42")
    assert (done.status, "there is no endpoint 42" in done.err) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        ("endpoint", "list"), ("endpoint", "show", "1"), ("endpoint", "enable", "1"), ("endpoint", "test", "1"),
        ("endpoint", "add", "s", "http://x"), ("event", "show", "1"), ("secret", "rotate", "1"),
    ],
)  # fmt: skip
async def test_without_a_database_each_exits_3_and_with_wrong_settings_78(pghookd, words):
    away = await pghookd(*words, "--json", url=NOBODY)
    assert away.status == away.told["status"] == 3
    wrong = await pghookd(*words, "--json", PGHOOKD_STORM_SHARE="3")
    assert wrong.status == wrong.told["status"] == 78


@pytest.mark.parametrize(
    "words", [("enable", "x"), ("enable", "1", "--held", "odd"), ("show", "-1"), ("fly",)]
)
async def test_usage_exits_2(pghookd, words):
    assert (await pghookd("endpoint", *words)).status == 2


@pytest.mark.slow
async def test_an_administrators_role_is_enough(pghookd, database, endpoint_id):
    assert (await pghookd("migrate", "--roles")).status == 0
    admin = f"{database}&role=webhooks_admin"
    assert (await pghookd("endpoint", "test", endpoint_id, "--wait", "0", url=admin)).status == 3
    for words in (
        ("endpoint", "add", "s", "https://b.example/"),
        ("endpoint", "list"),
        ("endpoint", "show", endpoint_id),
        ("endpoint", "disable", endpoint_id),
        ("endpoint", "enable", endpoint_id),
        ("secret", "rotate", endpoint_id),
    ):
        done = await pghookd(*words, url=admin)
        assert done.status == 0, done.err
    reader = f"{database}&role=webhooks_reader"
    assert (await pghookd("endpoint", "list", url=reader)).status == 0
    refused = await pghookd("endpoint", "show", endpoint_id, url=reader)
    assert (refused.status, "permission denied" in refused.err) == (1, True)


# Testing an endpoint ----------------------------------------------------------------------------------------


async def test_a_test_that_nobody_takes_exits_3(pghookd, db, endpoint_id):
    done = await pghookd("endpoint", "test", endpoint_id, "--wait", "0.2")
    assert done.status == 3
    assert "no daemon has read it" in done.err
    assert await operations(db) == ["send_test"]


@pytest.mark.slow
async def test_a_test_is_reported_at_once(pghookd, database, shop, start, receiver):
    endpoint_id = await shop.open("/a", event_types=["something.else"], secret=SECRET)
    await start(database)
    done = await pghookd("endpoint", "test", endpoint_id, "--json")
    assert done.status == 0
    assert (done.told["outcome"], done.told["status"], done.told["error"]) == ("delivered", 200, None)
    assert done.told["duration_ms"] > 0
    (request,) = receiver.requests
    assert request.webhook_id == done.told["webhook_id"]
    assert request.data["test"] is True
    plain = await pghookd("endpoint", "test", endpoint_id, "--type", "order_created")
    assert plain.out.startswith("delivered 200 in")
    assert receiver.requests[1].headers["x-webhook-topic"] == "order_created"


@pytest.mark.slow
async def test_a_refused_test_is_not_tried_again_and_not_mailed(
    pghookd, database, shop, start, receiver, reaches
):
    endpoint_id = await shop.open("/a")
    receiver.script = lambda request: 500 if request.data.get("test") else 200
    await start(database, retry_schedule="0.1s")
    done = await pghookd("endpoint", "test", endpoint_id, "--json")
    assert done.status == 1
    assert (done.told["outcome"], done.told["status"]) == ("refused", 500)
    tested = done.told["event_id"]
    assert await reaches(tested, endpoint_id, "dead") == ("dead", "exhausted", 1)
    await reaches(await shop.emit(), endpoint_id, "delivered")
    assert len([request for request in receiver.requests if request.event_id == tested]) == 1
    assert await shop.db.fetchval("select count(*) from webhooks.incidents") == 0


@pytest.mark.slow
async def test_a_delivery_cancelled_in_flight_is_not_tried_again(database, shop, start, receiver, until):
    endpoint_id = await shop.open("/a")
    gate, asked = asyncio.Event(), asyncio.Event()

    async def answer(request):
        if request.data == {"n": 1} and request.attempt == 2:
            asked.set()
            await gate.wait()
        return 500 if request.data == {"n": 1} else 200

    receiver.script = answer
    await start(database, retry_schedule="0.1s,0.1s,0.1s")
    event_id = await shop.emit()
    await asyncio.wait_for(asked.wait(), 10)
    assert await shop.db.fetchval("select webhooks.cancel($1, $2)", event_id, endpoint_id) == 1
    gate.set()
    await until(
        lambda: shop.db.fetchval("select count(*) = 2 from webhooks.attempts where event_id = $1", event_id)
    )
    await shop.reaches(await shop.emit(payload='{"n": 2}'), endpoint_id, "delivered")
    assert (await shop.stands(event_id))[endpoint_id][:2] == ("dead", "cancelled")
    assert await shop.db.fetchval("select count(*) from webhooks.backlog") == 0


# Events -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_event_show_prints_the_state_and_every_attempt(pghookd, db, endpoint_id):
    event_id = await emit(db, payload='{"a":  1}', subject="order/1")
    await db.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome,"
        " site_id, cause, revision) values ($1, $2, now(), 1.25, 1, 503, 'refused', 's', 'live', 1),"
        " ($1, $2, now(), 2, 2, 200, 'delivered', 's', 'retry', 1)",
        event_id,
        endpoint_id,
    )
    done = await pghookd("event", "show", event_id, "--json")
    assert done.status == 0
    assert (done.told["event_id"], done.told["subject"]) == (event_id, "order/1")
    assert "payload" not in done.told
    assert [each["outcome"] for each in done.told["attempts"]] == ["refused", "delivered"]
    assert [each["cause"] for each in done.told["attempts"]] == ["live", "retry"]
    url = await db.fetchval("select url from webhooks.endpoints")
    assert {(each["url"], each["revision"]) for each in done.told["attempts"]} == {(url, 1)}
    assert done.told["deliveries"][0]["state"] == "delivered"
    by_name = await pghookd("events", "show", done.told["webhook_id"], "--payload", "--json")
    assert by_name.told["payload"] == {"a": 1}
    plain = await pghookd("event", "show", event_id, "--payload")
    assert "delivered endpoint" in plain.out
    assert f"attempt 2 (retry): delivered 200, 2 ms, {url} (revision 1)" in plain.out
    assert '"a":  1' in plain.out
    other = await pghookd("event", "show", done.told["webhook_id"][:-1] + "x", "--json")
    assert other.status == 2


async def test_event_show_finds_the_newest_event_of_a_subject(pghookd, db, endpoint_id):
    ids = [await emit(db, subject="order/1") for _ in range(3)]
    await db.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome,"
        " response, site_id, evidence) values ($1, $2, now(), 1, 1, 500, 'refused', 'no room', 's', $3)",
        ids[2],
        endpoint_id,
        EVIDENCE,
    )
    done = await pghookd("event", "show", "s", "order/1", "--answer", "--json")
    assert done.told["event_id"] == ids[2]
    assert done.told["earlier"] == [ids[1], ids[0]]
    assert [each["answer"] for each in done.told["attempts"]] == ["no room"]
    assert [each["evidence"] for each in done.told["attempts"]] == [json.loads(EVIDENCE)]
    plain = await pghookd("event", "show", "s", "order/1", "--answer")
    assert "    203.0.113.9:443, connected after 12 ms, headers after 84 ms" in plain.out
    assert "    server: nginx\n    headers left out: 1\n    no room" in plain.out
    assert f"earlier events of this subject: {ids[1]}, {ids[0]}" in plain.out
    short = await pghookd("event", "show", ids[2])
    assert "    203.0.113.9:443, connected after 12 ms" in short.out
    assert not {word for word in ("no room", "nginx", "left out") if word in short.out}
    none = await pghookd("event", "show", "s", "order/2")
    assert (none.status, none.err) == (1, "site s has no event with the subject order/2\n")


async def test_event_show_of_an_unknown_event_exits_1(pghookd):
    done = await pghookd("event", "show", "7", "--json")
    assert (done.status, done.told["faults"]) == (1, ["there is no event 7"])


# Secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_rotate_shows_the_new_secret_once(pghookd, db, site):
    endpoint_id = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', 'http://x', $1) returning endpoint_id",
        SECRET,
    )
    done = await pghookd("secret", "rotate", endpoint_id, "--overlap", "2h", "--json")
    row = await db.fetchrow(
        "select secret, previous_secret, previous_secret_until - now() < '2 hours' as soon,"
        " previous_secret_until - now() > '1 hour' as late from webhooks.endpoints"
    )
    assert done.status == 0
    assert done.told == {"endpoint_id": endpoint_id, "secret": row["secret"], "overlap_s": 7200.0}
    assert (row["previous_secret"], row["soon"], row["late"]) == (SECRET, True, True)
    assert "rotate" in " ".join(await operations(db))
    assert row["secret"] not in (
        await db.fetchval("select string_agg(detail::text, '') from webhooks.operations")
    )
    assert (await pghookd("secret", "rotate", "42")).status == 1
    assert (await pghookd("secret", "rotate", "1", "--overlap", "soon")).status == 2
