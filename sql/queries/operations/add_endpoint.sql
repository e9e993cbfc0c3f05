-- Registers an endpoint. $1 text: its columns, JSON, with site_id and url; $2 bool: give it a new secret, which is
-- returned.
select a.endpoint_id, case when $2::bool then a.secret end as secret
from (select $1::jsonb ||
  case when $2::bool then jsonb_build_object('secret', webhooks.new_secret()) else '{}' end) o(of)
cross join lateral webhooks.add_endpoint(o.of ->> 'site_id', o.of ->> 'url', o.of - 'site_id' - 'url') a
