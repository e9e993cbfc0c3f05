"""A site as a test sees it: opens endpoints, emits events, and reads the state of deliveries from the rows."""

from __future__ import annotations

import json

from support.events import emit


class Shop:
    """One site with its endpoints."""

    def __init__(self, db, receiver, until, site_id="s"):
        self.db, self.receiver, self.site_id = db, receiver, site_id
        self._until = until

    async def open(self, path="/a", *, url=None, **columns):
        """Make an endpoint (and the site, if there is none) and return its id."""
        await self.db.execute(
            "insert into webhooks.sites (site_id, name, url) values ($1, 'S', 'https://shop.example')"
            " on conflict do nothing",
            self.site_id,
        )
        names = ", ".join(["site_id", "url", *columns])
        marks = ", ".join(f"${n + 1}" for n in range(len(columns) + 2))
        return await self.db.fetchval(
            f"insert into webhooks.endpoints ({names}) values ({marks}) returning endpoint_id",
            self.site_id,
            url or self.receiver.url(path),
            *columns.values(),
        )

    async def emit(self, kind="order_created", payload=None, site_id=None):
        """Insert an event and return its id."""
        text = json.dumps({"n": 1}) if payload is None else payload
        return await emit(self.db, site=site_id or self.site_id, kind=kind, payload=text)

    async def stands(self, event_id):
        """Return {endpoint_id: (state, reason, attempts)} of an event."""
        rows = await self.db.fetch("select * from webhooks.deliveries where event_id = $1", event_id)
        return {row["endpoint_id"]: (row["state"], row["reason"], row["attempts"]) for row in rows}

    async def attempts(self, event_id):
        """Return (attempt, outcome, status, error) of each attempt, in order."""
        rows = await self.db.fetch(
            "select attempt, outcome, status, error from webhooks.attempts where event_id = $1 order by attempt",
            event_id,
        )
        return [tuple(row) for row in rows]

    async def reaches(self, event_id, endpoint_id, state, seconds=10.0):
        """Wait until a delivery is in a state; return (state, reason, attempts)."""

        async def there():
            return (await self.stands(event_id)).get(endpoint_id, ("",))[0] == state

        try:
            await self._until(there, seconds)
        except TimeoutError:
            found = (await self.stands(event_id)).get(endpoint_id)
            raise AssertionError(f"not {state} after {seconds} s but {found}") from None
        return (await self.stands(event_id))[endpoint_id]
