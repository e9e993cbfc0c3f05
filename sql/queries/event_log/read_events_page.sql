-- One page of the difference between two snapshots, by event_id. Exact, because xid is that of the top-level
-- transaction. A walk along the primary key: none of the other conditions can use an index, and the planner, who cannot
-- know how few rows they leave, is kept from trying them by offset 0 (else it reads and sorts all days at once).
-- $1 pg_snapshot: the last read; $2 pg_snapshot: up to this one; $3 bigint: after this event_id; $4 bigint: up to
-- this one; $5 int: rows; $6 int[]: only these shards, null: all; $7 int: how many shards there are; $8 text[]: sites
-- whose events come without payload and options, since they are left in the log for a while.
select e.event_id, e.site_id, e.type, e.created_at, e.endpoint_id,
  case when e.site_id <> all ($8) and
    --include payload_is_inline
    then e.payload end as payload,
  case when e.site_id <> all ($8) then
    --include event_options
  end as options
from (
  select xid, event_id, site_id, type, created_at, endpoint_id, payload, traceparent, deliver_after, deliver_before,
    ordering_key, dedupe_key, supersede_key
  from webhooks.events
  where event_id > $3 and event_id <= $4
  order by event_id
  offset 0) e
where pg_visible_in_snapshot(e.xid, $2) and not pg_visible_in_snapshot(e.xid, $1)
  and ($6::int[] is null or webhooks.shard_of(e.site_id, $7) = any ($6))
order by e.event_id
limit $5
