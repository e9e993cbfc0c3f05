"""The page for owners, as sql/README.md prints it: a login that sees one site lists deliveries and sends one again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import types
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from pghookd.postgres import migrate
from support.events import emit

GUIDE = (Path(__file__).parents[3] / "sql/README.md").read_text(encoding="utf-8")
LOGIN = f"pghookd_test_{os.getpid()}_owners_page"


def block(language):
    (found,) = [
        each for each in re.findall(rf"(?ms)^```{language}\n(.*?)^```$", GUIDE) if "site_deliveries" in each
    ]
    return found


@pytest.fixture
def recipe():
    names = {}
    exec(compile(block("python"), "recipe", "exec", dont_inherit=True), names)  # noqa: S102 - a text of this repository
    return types.SimpleNamespace(**names)


@pytest.fixture
async def web(database, admin):
    """Return the web application's connection, a member of webhooks_site."""
    await migrate.migrate(database, roles=True)
    await admin.execute(f"create role {LOGIN} login password 'pw' in role webhooks_site")
    parts = urlsplit(database)
    url = parts._replace(netloc=f"{LOGIN}:pw@{parts.netloc.rpartition('@')[2]}").geturl()
    connection = psycopg.connect(url, autocommit=True)
    yield connection
    connection.close()
    await admin.execute(f"drop role {LOGIN}")


async def test_the_page_lists_deliveries_and_its_button_sends_one_again(database, connect, web, recipe):
    db = await connect(database)
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    endpoint_id = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x') returning endpoint_id"
    )
    ids = [await emit(db, subject=subject) for subject in ("order/1", "<b>", None)]
    await db.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " values ($1, $2, 's', 'exhausted', 3)",
        ids[1], endpoint_id,
    )  # fmt: skip
    rows = recipe.deliveries(web, "s")
    assert [row["event_id"] for row in rows] == ids[::-1]
    text = recipe.page(rows)
    assert "order/1" in text
    assert "&lt;b&gt;" in text
    assert text.count("<button") == 1
    assert recipe.deliveries(web, "s", rows[1]["cursor"])[0]["event_id"] == ids[0]
    button = re.search(r"value=([0-9.]+)", text)[1]
    assert not recipe.send_again(web, "t", button)
    assert recipe.send_again(web, "s", button)
    assert not recipe.send_again(web, "s", f"{ids[0]}.{endpoint_id}")  # it is pending
    assert await db.fetchval("select spec ->> 'endpoint_id' from webhooks.replays") == str(endpoint_id)
    assert recipe.page([]) == "<table></table>No deliveries yet."


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_in_node_can_be_parsed():
    done = subprocess.run(
        ["node", "--check", "-"], input=block("js"), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
