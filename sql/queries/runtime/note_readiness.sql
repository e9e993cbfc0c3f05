-- Records for endpoints whether requests to them could be made, and why not. A row that has changed since it was read is
-- left for the next time. No bell rings for it, since it changes nothing about deliveries. $1 bigint[]: endpoint ids;
-- $2 text[]: versions of the rows; $3 text[]: why not, null if ready.
update webhooks.endpoints p
set ready = u.why is null, why = u.why, judged_at = now()
from unnest($1::bigint[], $2::text[], $3::text[]) u(endpoint_id, version, why),
  (select set_config('webhooks.bell', 'off', true)) quiet
where p.endpoint_id = u.endpoint_id and p.xmin::text = u.version
