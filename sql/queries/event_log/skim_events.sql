-- The events of a page of read_events_page by their ids alone: events left in the log for a while need no more. Found
-- in the same way. $1 pg_snapshot: the last read; $2 pg_snapshot: up to this one; $3 bigint: after this event_id;
-- $4 bigint: up to this one; $5 int: events; $6 int[]: only these shards, null: all; $7 int: number of shards.
select site_id, type, endpoint_id, array_agg(event_id) as event_ids
from (
  select event_id, site_id, type, endpoint_id
  from (
    select xid, event_id, site_id, type, endpoint_id
    from webhooks.events
    where event_id > $3 and event_id <= $4
    order by event_id
    offset 0) e
  where pg_visible_in_snapshot(xid, $2) and not pg_visible_in_snapshot(xid, $1)
    and ($6::int[] is null or webhooks.shard_of(site_id, $7) = any ($6))
  order by event_id
  limit $5) page
group by site_id, type, endpoint_id
