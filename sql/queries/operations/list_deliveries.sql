-- The deliveries of a site, newest first. $1 text: the site; null where a filter does not apply: $2 bigint: endpoint;
-- $3 text: state; $4 text: type; $5 text: subject; $6 timestamptz: from this time on; $7 timestamptz: before this time;
-- $8 text: the cursor of the last row seen; $9 int: rows.
select cursor, event_id, webhook_id, endpoint_id, type, subject, state, detail, attempts, created_at, last_attempt_at,
  last_status, last_error, next_attempt_at
from webhooks.site_deliveries($1, $2, $3, $4, $5, $6, $7, $8, $9)
