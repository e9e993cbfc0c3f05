-- An event, without its payload. $1 bigint: event_id.
select event_id, webhooks.webhook_id(event_id, created_at) as webhook_id, site_id, type, created_at, subject,
  ordering_key, dedupe_key, supersede_key, traceparent, deliver_after, deliver_before, endpoint_id,
  octet_length(payload::text) as payload_bytes
from webhooks.events where event_id = $1
