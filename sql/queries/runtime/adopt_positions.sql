-- The new positions: everything visible in the transaction's one snapshot is settled or queued. The old marks are
-- deleted, since a foreign xid above ours would look new at every read. $1 bigint: the floor, an id up to which every
-- event is visible in that snapshot.
update webhooks.shards
set snapshot = pg_current_snapshot(), upto = null, last_event_id = 0, floor = $1, front = $1, mark_event_id = null, mark_xid = null,
  system_identifier = (select system_identifier from pg_control_system()),
  database_oid = (select oid from pg_database where datname = current_database()),
  timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8), max_event_id = $1, stored_at = now()
