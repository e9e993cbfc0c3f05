"""Revisions of endpoints: each change leaves one row with its time, actor and columns, and no credential is shown."""

from __future__ import annotations

import json

import pytest

from pghookd.process.unix_user import unix_user

MARK = "canary"
SECRET = f"{MARK}-secret"
INSERT = (
    "insert into webhooks.endpoints (site_id, url) values ('s', 'https://a.example/1') returning endpoint_id"
)


class House:
    """Two sites, and the records of their endpoints."""

    def __init__(self, con):
        self.con = con

    async def revisions(self, endpoint_id):
        """Return the revisions of an endpoint: number and changes."""
        rows = await self.con.fetch(
            "select revision, changed from webhooks.endpoint_revisions where endpoint_id = $1 order by revision",
            endpoint_id,
        )
        return [(row["revision"], json.loads(row["changed"])) for row in rows]

    async def changed(self, endpoint_id, **columns):
        """Change columns of an endpoint, each given as SQL; return what its later revisions say."""
        before = len(await self.revisions(endpoint_id))
        assigned = ", ".join(f"{name} = {value}" for name, value in columns.items())
        await self.con.execute(
            f"update webhooks.endpoints set {assigned} where endpoint_id = $1", endpoint_id
        )
        return [changed for _, changed in (await self.revisions(endpoint_id))[before:]]

    async def revision(self, endpoint_id):
        return await self.con.fetchval(
            "select revision from webhooks.endpoints where endpoint_id = $1", endpoint_id
        )

    async def operations(self, what):
        rows = await self.con.fetch(
            "select detail from webhooks.operations where what = $1 order by at", what
        )
        return [json.loads(row["detail"]) for row in rows]


@pytest.fixture
async def house(database, connect):
    made = House(await connect(database, server_settings={"application_name": "shop-web"}))
    await made.con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    return made


@pytest.fixture
async def endpoint_id(house):
    return await house.con.fetchval(INSERT)


# Rows -----------------------------------------------------------------------------------------------------------------


async def test_the_first_revision_has_every_column_that_is_set(house):
    endpoint_id = await house.con.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret, headers, filter, timeout_s)"
        """ values ('s', 'https://a.example/1', 'k', '{"X-Key": "k", "A": "b"}', '$.a > 1', 2.5)"""
        " returning endpoint_id"
    )
    assert await house.revisions(endpoint_id) == [
        (
            1,
            {
                "site_id": [None, "s"],
                "url": [None, "https://a.example/1"],
                "event_types": [None, ["*"]],
                "secret": ["changed"],
                "enabled": [None, True],
                "ordered": [None, False],
                "filter": [None, '($."a" > 1)'],
                "timeout_s": [None, 2.5],
                "headers": [None, ["A", "X-Key"]],
                "profile": [None, "standard"],
            },
        )
    ]


async def test_each_change_is_a_revision_with_old_and_new_values(house, endpoint_id):
    url = "https://a.example/"
    assert await house.changed(endpoint_id, url=f"'{url}2'") == [{"url": [f"{url}1", f"{url}2"]}]
    assert await house.changed(endpoint_id, url=f"'{url}3'", concurrency=4) == [
        {"url": [f"{url}2", f"{url}3"], "concurrency": [None, 4]}
    ]
    assert await house.changed(endpoint_id, concurrency="null") == [{"concurrency": [4, None]}]
    assert [number for number, _ in await house.revisions(endpoint_id)] == [1, 2, 3, 4]
    assert await house.revision(endpoint_id) == 4
    assert await house.operations("endpoint_changed") == [
        {"endpoint_id": endpoint_id, "revision": number} for number in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"url": "url"},
        {"revision": "77"},
        {"created_at": "now() - interval '1 day'"},
        {"from_event_id": "5"},
        {"secret_kind": "'legacy'"},
        {"disabled_at": "now()"},
    ],
    ids=str,
)
async def test_a_change_without_substance_makes_no_revision(house, endpoint_id, columns):
    assert await house.changed(endpoint_id, **columns) == []
    assert await house.revision(endpoint_id) == 1
    assert await house.operations("endpoint_changed") == []


async def test_no_statement_sets_the_revision(house):
    endpoint_id = await house.con.fetchval(
        "insert into webhooks.endpoints (site_id, url, revision) values ('s', 'http://x', 9) returning endpoint_id"
    )
    assert await house.revision(endpoint_id) == 1
    await house.changed(endpoint_id, url="'http://y'", revision=9)
    assert await house.revision(endpoint_id) == 2


async def test_switching_off_and_on_is_two_revisions(house, endpoint_id):
    await house.con.execute("select webhooks.disable_endpoint($1)", endpoint_id)
    await house.con.execute("select webhooks.enable_endpoint($1)", endpoint_id)
    assert [changed for _, changed in await house.revisions(endpoint_id)][1:] == [
        {"enabled": [True, False], "disabled_reason": [None, "operator"]},
        {"enabled": [False, True], "disabled_reason": ["operator", None]},
    ]
    assert await house.operations("endpoint_changed") == []  # both have written a row of their own
    await house.con.execute("select webhooks.disable_endpoint($1)", endpoint_id)
    await house.changed(endpoint_id, timeout_s=5)
    assert await house.operations("endpoint_changed") == [{"endpoint_id": endpoint_id, "revision": 5}]


async def test_a_deleted_endpoint_has_a_last_revision(house, endpoint_id):
    await house.con.execute("delete from webhooks.endpoints where endpoint_id = $1", endpoint_id)
    assert (await house.revisions(endpoint_id))[1:] == [(2, {"deleted": [False, True]})]
    await house.con.execute(
        "insert into webhooks.endpoints (endpoint_id, site_id, url) overriding system value values ($1, 's', 'http://x')",
        endpoint_id,
    )  # the same id again: its revisions go on
    assert await house.revision(endpoint_id) == 3
    await house.con.execute("delete from webhooks.sites where site_id = 's'")
    assert [number for number, _ in await house.revisions(endpoint_id)] == [1, 2, 3, 4]


async def test_a_move_is_a_revision_at_the_new_site(house, endpoint_id):
    assert await house.changed(endpoint_id, site_id="'t'") == [{"site_id": ["s", "t"]}]
    sites = await house.con.fetch("select site_id from webhooks.endpoint_revisions order by revision")
    assert [row["site_id"] for row in sites] == ["s", "t"]


async def test_a_bulk_change_counts_each_endpoint_that_it_changes(house):
    ids = [await house.con.fetchval(INSERT) for _ in range(5)]
    await house.con.execute("update webhooks.endpoints set timeout_s = 5 where endpoint_id = $1", ids[0])
    await house.con.execute("update webhooks.endpoints set timeout_s = 5")
    assert [len(await house.revisions(each)) for each in ids] == [2] * 5
    await house.con.execute(
        "update webhooks.endpoints set timeout_s = 6; update webhooks.endpoints set timeout_s = 7"
    )
    assert [await house.revision(each) for each in ids] == [4] * 5


async def test_an_upsert_that_inserts_nothing_leaves_no_row_of_an_insert(house, endpoint_id):
    upsert = (
        "insert into webhooks.endpoints (endpoint_id, site_id, url) values ($1, 's', 'http://x')"
        " on conflict (endpoint_id) do "
    )
    await house.con.execute(f"{upsert} nothing", endpoint_id)
    assert len(await house.revisions(endpoint_id)) == 1
    await house.con.execute(f"{upsert} update set url = excluded.url", endpoint_id)
    await house.con.execute(f"{upsert} update set url = excluded.url", endpoint_id)
    assert (await house.revisions(endpoint_id))[1:] == [(2, {"url": ["https://a.example/1", "http://x"]})]


async def test_only_the_current_revision_is_not_replaced(house, endpoint_id):
    replaced = "select replaced from webhooks.endpoint_revisions order by revision"
    await house.changed(endpoint_id, timeout_s=5)
    assert [row["replaced"] for row in await house.con.fetch(replaced)] == [True, False]
    await house.con.execute("delete from webhooks.endpoints")
    assert [row["replaced"] for row in await house.con.fetch(replaced)] == [True, True, True]


# Credentials --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"secret": f"'{SECRET}'"}, {"secret"}),
        ({"auth": f"""'{{"bearer": {{"token": "{MARK}"}}}}'"""}, {"auth"}),
        (
            {"previous_secret": f"'{SECRET}'", "previous_secret_until": "'2030-01-01'"},
            {"previous_secret", "previous_secret_until"},
        ),
    ],
)
async def test_of_a_credential_only_that_it_changed(house, endpoint_id, columns, names):
    [changed] = await house.changed(endpoint_id, **columns)
    assert changed.keys() == names
    assert changed.pop(next(iter(columns))) == ["changed"]
    assert await house.changed(endpoint_id, **columns) == []
    [changed] = await house.changed(endpoint_id, **dict.fromkeys(columns, "null"))
    assert changed.pop(next(iter(columns))) == ["changed"]


async def test_of_headers_only_the_names(house, endpoint_id):
    assert await house.changed(endpoint_id, headers=f"""'{{"A": "{MARK}"}}'""") == [{"headers": [[], ["A"]]}]
    assert await house.changed(endpoint_id, headers="""'{"A": "other"}'""") == [{"headers": ["changed"]}]
    assert await house.changed(endpoint_id, headers=f"""'{{"B": "{MARK}"}}'""") == [
        {"headers": [["A"], ["B"]]}
    ]


async def test_encrypting_makes_no_revision_but_adding_something_encrypted_does(house, endpoint_id):
    auth = """'{"bearer": {"token": "t"}}'"""
    await house.changed(endpoint_id, secret="'k'", auth=auth)
    assert (
        await house.changed(endpoint_id, secret="'enc:v1:a'", auth="'\"enc:v1:b\"'", secret_kind="'legacy'")
        == []
    )
    assert await house.changed(endpoint_id, secret="'enc:v1:c'") == []
    assert await house.changed(endpoint_id, secret="null") == [{"secret": ["changed"]}]
    assert await house.changed(endpoint_id, secret="'enc:v1:c'") == [{"secret": ["changed"]}]


async def test_no_credential_is_anywhere_in_the_table(house, endpoint_id):
    await house.changed(
        endpoint_id,
        secret=f"'{SECRET}'",
        auth=f"""'{{"basic": {{"username": "u", "password": "{MARK}"}}}}'""",
        headers=f"""'{{"Authorization": "Bearer {MARK}"}}'""",
    )
    await house.con.execute("select webhooks.rotate_secret($1)", endpoint_id)
    await house.con.execute("select webhooks.rotate_secret($1, '0')", endpoint_id)
    await house.changed(endpoint_id, secret="null", auth="null", headers="'{}'")
    await house.con.execute("delete from webhooks.endpoints")
    rows = await house.con.fetch(
        "select r::text from webhooks.endpoint_revisions r"
        " union all select o::text from webhooks.operations o"
    )
    assert len(rows) > 5
    assert not [row for row in rows if MARK in row["r"] or "whsec_" in row["r"]]


# Actors -------------------------------------------------------------------------------------------------------------


async def test_the_actor_is_role_application_and_unix_user(house, endpoint_id):
    await house.con.execute("set webhooks.actor = 'anna as root'")
    await house.changed(endpoint_id, timeout_s=5)
    await house.con.execute("set application_name = ''; reset webhooks.actor")
    await house.changed(endpoint_id, timeout_s=6)
    role = await house.con.fetchval("select session_user")
    actors = await house.con.fetch("select actor from webhooks.endpoint_revisions order by revision")
    assert [row["actor"] for row in actors] == [
        f"{role} (shop-web)",
        f"{role} (shop-web, anna as root)",
        role,
    ]


def test_a_unix_user_behind_sudo_is_named(monkeypatch):
    monkeypatch.delenv("SUDO_USER", raising=False)
    name = unix_user()
    monkeypatch.setenv("SUDO_USER", "anna")
    assert unix_user() == f"anna as {name}"


async def test_the_owner_alone_could_write_revisions_and_admins_read_them(house, endpoint_id):
    rights = await house.con.fetch(
        "select grantee, privilege_type from information_schema.role_table_grants"
        " where table_name = 'endpoint_revisions' and grantee like 'webhooks\\_%' and grantee <> 'webhooks_owner'"
    )
    assert {row["privilege_type"] for row in rights} <= {"SELECT"}


# Sites --------------------------------------------------------------------------------------------------------------


async def test_a_change_of_a_site_is_an_operation_with_names_alone(house):
    await house.con.execute("update webhooks.sites set name = name")
    assert await house.operations("site_changed") == []
    await house.con.execute(
        "update webhooks.sites set owner_email = 'anna@shop.example', language = 'de' where site_id = 's'"
    )
    assert await house.operations("site_changed") == [
        {"site_id": "s", "columns": ["language", "owner_email"]}
    ]


# Erasing ------------------------------------------------------------------------------------------------------------


async def test_forget_leaves_no_revision_of_a_site(house, endpoint_id):
    moved, gone = await house.con.fetchval(INSERT), await house.con.fetchval(INSERT)
    await house.changed(endpoint_id, timeout_s=5)
    await house.changed(moved, site_id="'t'", timeout_s=5)
    await house.con.execute("delete from webhooks.endpoints where endpoint_id = $1", gone)
    await house.con.execute("select webhooks.forget('s')")
    assert await house.revisions(endpoint_id) == await house.revisions(gone) == []
    assert await house.revisions(moved) == [(2, {"timeout_s": [None, 5]})]
    assert await house.revision(moved) == 2
