-- The stored positions; read after the locks were granted, in a statement of its own.
select shard, snapshot, upto, last_event_id, floor, front, mark_event_id, mark_xid, system_identifier, database_oid, timeline, max_event_id
from webhooks.shards order by shard
