-- Owners whose endpoints are due for a check: an owner with all sites, or a site that names no owner (then the owner is
-- empty). $1 timestamptz: now; $2 int: maximum number of owners. There are as many incidents as failing endpoints: all
-- are read, with a step to each one's endpoint and site.
select distinct coalesce(lower(s.owner_email), '') as owner_email,
  case when s.owner_email is null then s.site_id else '' end as site_id
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
join webhooks.sites s using (site_id)
where i.next_look_at <= $1
limit $2
