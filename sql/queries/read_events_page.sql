-- One page of the difference between two snapshots, by event_id. Exact, because xid is that of the top-level
-- transaction. A walk along the primary key: none of the other conditions can use an index, and the planner, who cannot
-- know how few rows they leave, is kept from looking at them by offset 0 (else it reads and sorts all days at once).
-- $1 pg_snapshot: the last read; $2 pg_snapshot: up to this one; $3 bigint: after this event_id; $4 bigint: up to
-- this one; $5 int: rows; $6 int[]: only these shards, null: all; $7 int: how many shards there are.
select event_id, site_id, type, created_at, endpoint_id,
  case when pg_column_compression(payload) is null and pg_column_size(payload) <= 16384 then payload
       when octet_length(payload::text) <= 16384 then payload end as payload
from (
  select xid, event_id, site_id, type, created_at, endpoint_id, payload
  from webhooks.events
  where event_id > $3 and event_id <= $4
  order by event_id
  offset 0) e
where pg_visible_in_snapshot(xid, $2) and not pg_visible_in_snapshot(xid, $1)
  and ($6::int[] is null or mod(mod(hashtextextended(site_id, 0), $7) + $7, $7) = any ($6))
order by event_id
limit $5
