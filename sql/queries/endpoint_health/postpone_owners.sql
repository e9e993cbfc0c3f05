-- Postpones owners whose incidents could not be checked, so that they delay no other owner. $1 text[]: owners, in lower
-- case; $2 timestamptz: time of the next check; $3 text[]: sites that name no owner.
update webhooks.incidents i set next_look_at = $2
from webhooks.endpoints p
join webhooks.sites s using (site_id)
where p.endpoint_id = i.endpoint_id and i.next_look_at < $2
  and (lower(s.owner_email) = any ($1) or s.owner_email is null and s.site_id = any ($3))
