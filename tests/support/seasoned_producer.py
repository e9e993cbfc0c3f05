"""A producer with everything that may keep an old idea of the partitions: plans, functions, bulk inserts, COPY."""

from __future__ import annotations

INSERT = "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}') returning event_id"
IN_BULK = """insert into webhooks.events (site_id, type, payload)
select 's', 'order_created', '{}' from generate_series(1, 50)"""
IN_PLPGSQL = """create function public.place_order() returns bigint language plpgsql as $$
declare id bigint;
begin
  insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}') returning event_id into id;
  return id;
end $$"""
NO_WAITING = {"server_settings": {"lock_timeout": "200ms", "statement_timeout": "5s"}}


class SeasonedProducer:
    """A producer whose plans are made before the partitions change."""

    def __init__(self, connection):
        self.connection = connection
        self.prepared = None

    async def warm_up(self):
        self.prepared = await self.connection.prepare(INSERT)
        for _ in range(7):  # five plans of its own, then the generic one
            await self.prepared.fetchval()
            await self.connection.fetchval("select public.place_order()")
            await self.connection.execute(IN_BULK)
        await self.copy()

    async def copy(self):
        rows = [("s", "order_created", "{}")] * 20
        await self.connection.copy_records_to_table(
            "events", schema_name="webhooks", columns=["site_id", "type", "payload"], records=rows
        )

    async def insert_in_all_ways(self):
        await self.prepared.fetchval()
        await self.connection.fetchval("select public.place_order()")
        await self.connection.execute(IN_BULK)
        await self.copy()
        if self.connection.is_in_transaction():
            await self.connection.execute("savepoint inner_one")
            await self.prepared.fetchval()
            await self.connection.execute("rollback to inner_one")
            await self.prepared.fetchval()
