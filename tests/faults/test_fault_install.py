"""The guide is followed: the blocks "Install" and "Uninstall" of systemd/README.md, as they are written.

The daemon then runs with the guide's own settings, user, password and unit, and delivers to a public address.
"""

from __future__ import annotations

import json

import booted
import installation
import pytest

REFUSAL = booted.refusal()
pytestmark = [pytest.mark.short, pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL or "-")]

PUBLIC = "192.31.196.1"  # of AS112 (RFC 7535): a public address, given to the loopback in there
ROLES = (
    "pghookd", "webhooks_producer", "webhooks_admin", "webhooks_reader", "webhooks_support", "webhooks_site",
    "webhooks_daemon", "webhooks_owner",
)  # fmt: skip
EVENT = """
insert into webhooks.sites (site_id, name) values ('s', 'a site');
insert into webhooks.endpoints (site_id, url, secret) values ('s', '{url}', webhooks.new_secret());
insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{{"id": 1042}}');
"""


@pytest.fixture(scope="module")
def machine(boot, tmp_path_factory):
    """Return a booted systemd where the guide's installation has been followed; `printed` of it is its output."""
    made = boot(tmp_path_factory.mktemp("no-sockets"))
    made.printed = installation.install(made)
    return made


def sql(machine, statements):
    """Run statements as the database superuser; return what psql printed."""
    return installation.run(machine, 'sudo -u postgres psql -qAt app -c "$(cat)"', statements)


async def test_the_guide_installs_a_daemon_that_delivers(machine, until):
    assert not [line for line in machine.printed.splitlines() if line.startswith("warning ")]
    assert "Active: active (running)" in machine.printed  # by `systemctl status`
    machine.has_address(PUBLIC)
    async with booted.Inside(machine) as receiver:
        sql(machine, EVENT.format(url=receiver.url("/in").replace("127.0.0.1", PUBLIC)))
        await until(lambda: receiver.requests)
        assert json.loads(receiver.requests[0].body)["data"] == {"id": 1042}
        states = "select state, attempts from webhooks.deliveries"
        await until(lambda: sql(machine, states) == "delivered|1\n")
    (check,) = [line for line in installation.block("Install").splitlines() if " check " in line]
    assert "database: app answers" in installation.run(machine, check)  # a fault would end it with 1
    assert machine.shows("ActiveState") == "active"


async def test_the_guide_leaves_nothing_behind(machine):
    """The last of this file: nothing is left for another."""
    installation.uninstall(machine)
    assert installation.run(machine, "find /etc /run -name '*pghookd*'; ls /opt | grep pghookd || true") == ""
    for base in ("passwd", "group"):
        assert machine.call("getent", base, "pghookd", check=False).stdout == ""
    sql(machine, "drop schema webhooks, webhooks_archive cascade")
    sql(machine, "".join(f"drop owned by {role}; drop role {role};" for role in ROLES))
    assert sql(machine, "select rolname from pg_roles where rolname !~ '^pg_'") == "postgres\n"
