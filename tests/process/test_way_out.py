"""The way out in a running daemon: a test event is judged like a real one, and a proxy's failures are nobody's."""

from __future__ import annotations

import socket

from support.proxy_server import forwarding


async def test_a_test_event_is_checked_like_a_real_one_and_the_reason_is_shown(
    database, shop, start, reaches
):
    endpoints = {
        await shop.open(url="http://10.1.2.3/hook"): "literal",
        await shop.open(url="http://printer.corp/hook"): "name",
        await shop.open(url="http://127.0.0.1:6379/hook"): "port",
    }
    daemon = await start(database)
    for endpoint, error in endpoints.items():
        real = await shop.emit()
        test = await shop.db.fetchval("select webhooks.send_test($1)", endpoint)
        for event in (real, test):
            assert await reaches(event, endpoint, "dead") == ("dead", "blocked", 1)
            rows = await shop.db.fetch(
                "select outcome, error from webhooks.attempts where event_id = $1 and endpoint_id = $2",
                event,
                endpoint,
            )
            assert [tuple(row) for row in rows] == [("blocked", error)]
            await daemon.wait_for("delivery.attempted", event_id=event, outcome="blocked", error=error)


async def test_deliveries_leave_through_the_proxy(database, shop, start, receiver, reaches):
    endpoint = await shop.open()
    async with forwarding() as proxy:
        await start(database, egress_proxy=f"http://user:pass@127.0.0.1:{proxy.port}")
        for _ in range(3):
            await reaches(await shop.emit(), endpoint, "delivered")
    assert len(receiver.requests) == 3
    (asked,) = proxy.heads
    assert asked.startswith(b"CONNECT 127.0.0.1:")
    assert b"proxy-authorization: Basic dXNlcjpwYXNz\r\n" in asked


async def test_a_proxy_that_is_away_harms_no_endpoint(database, shop, start, receiver, reaches):
    endpoint = await shop.open()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://user:hunter2@127.0.0.1:{closed.getsockname()[1]}"
        daemon = await start(
            database,
            egress_proxy=proxy,
            retry_schedule="0.1s,0.1s,0.1s",
            mail_first_wait_s=0.1,
            mail_check_s=0.1,
        )
        event = await shop.emit()
        await reaches(event, endpoint, "waiting")
        sql = "select attempts, attempts_before from webhooks.backlog"
        row = await shop.db.fetchrow(sql)
        assert row["attempts"] == row["attempts_before"] > 0  # the schedule is not used up
        assert {row[1:] for row in await shop.attempts(event)} == {("failed", None, "proxy: ECONNREFUSED")}
        health = "select health, disabled_reason from webhooks.endpoint_health where endpoint_id = $1"
        assert tuple(await shop.db.fetchrow(health, endpoint)) == ("healthy", None)
        assert await shop.db.fetchval("select count(*) from webhooks.incidents") == 0
    assert not receiver.connections
    assert "hunter2" not in daemon.told()
