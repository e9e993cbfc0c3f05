"""Inserts events, for tests that are not about the INSERT itself."""

from __future__ import annotations


class Sql(str):
    """A value as an SQL expression; it may use `site`, and `n`, which numbers the events of a site from 1."""

    __slots__ = ()


async def emit(connection, count=None, *, site="s", kind="order_created", payload="{}", **columns):
    """Insert events in one statement.

    Args:
        connection: a connection or a session.
        count: how many; None for one.
        site: the site, or several that get as many each.
        kind: the type.
        payload: the JSON text.
        columns: values of further columns.

    Returns:
        The id of the event; a list of ids in their order if there is a count or several sites.
    """
    one = count is None and isinstance(site, str)
    arguments = [[site] if isinstance(site, str) else list(site), 1 if count is None else count]
    columns = {"type": kind, "payload": payload, **columns}
    values = []
    for name, value in columns.items():
        if isinstance(value, Sql):
            values.append(value)
            continue
        arguments.append(value)
        # A session of the daemon takes json as bytes, a plain connection as a string.
        values.append(f"${len(arguments)}" + ("::text::json" if name == "payload" else ""))
    rows = await connection.fetch(
        f"insert into webhooks.events (site_id, {', '.join(columns)}) select site, {', '.join(values)} from"
        " (select site, n from unnest($1::text[]) site, generate_series(1, $2::int) n order by n, site) numbered"
        " returning event_id",
        *arguments,
    )
    ids = [row["event_id"] for row in rows]
    return ids[0] if one else ids
