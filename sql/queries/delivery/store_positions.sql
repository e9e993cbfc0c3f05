-- Stores how far shards are settled, and a mark: the id read just before, and the xid that this statement is given.
-- Never inside a transaction that has written before: its xid would be older than the id.
-- $1 smallint[]: shards; $2 pg_snapshot[], $3 pg_snapshot[], $4 bigint[]: positions; $5 bigint[]: floors; $6 bigint[]: fronts;
-- $7 bigint: the newest id; $8 bigint: system identifier; $9 oid: database; $10 text: timeline.
update webhooks.shards t
set snapshot = u.snapshot, upto = u.upto, last_event_id = u.last_event_id, floor = u.floor, front = u.front,
  mark_event_id = $7, mark_xid = pg_current_xact_id(), system_identifier = $8, database_oid = $9, timeline = $10,
  max_event_id = $7, stored_at = now()
from unnest($1::smallint[], $2::pg_snapshot[], $3::pg_snapshot[], $4::bigint[], $5::bigint[], $6::bigint[])
  as u(shard, snapshot, upto, last_event_id, floor, front)
where t.shard = u.shard
returning pg_current_xact_id() as xid
