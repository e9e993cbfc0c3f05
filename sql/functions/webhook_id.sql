-- The webhook-id of an event: the header's text. SQL-standard bodies bind the names at creation, since views and
-- anybody call this function, with the caller's search_path.
create or replace function webhooks.webhook_id(event_id bigint, created_at timestamptz) returns text
language sql immutable strict parallel safe
return 'evt_' || lpad(to_hex(event_id), 14, '0')
  || lpad(to_hex(greatest(0, least(72057594037927935, extract(epoch from created_at) * 1000000))::bigint), 14, '0');
comment on function webhooks.webhook_id is
  'The webhook-id header: made of both, since after a failover the same event_id may be given out again';
