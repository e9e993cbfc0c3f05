-- The event_id within a webhook-id; null if the text has not the form of one. The inverse of webhook_id.
create or replace function webhooks.event_id(webhook_id text) returns bigint
language sql immutable strict parallel safe
return case when webhook_id ~ '^evt_[0-9a-f]{28}$' then ('x' || lpad(substr(webhook_id, 5, 14), 16, '0'))::bit(64)::bigint end;
