-- Whose endpoints are to be looked at. $1 timestamptz: now; $2 int: owners at most; the empty owner is nobody.
-- Incidents are as many as endpoints fail: read through, with a step to each one's endpoint and site.
select distinct coalesce(lower(s.owner_email), '') as owner_email
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
join webhooks.sites s using (site_id)
where i.next_look_at <= $1
limit $2
