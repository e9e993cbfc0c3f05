-- Facts that explain an empty list of a site's deliveries. $1 text: the site; $2 bigint: an endpoint, or null; $3 text:
-- a subject, or null. Lives on events_by_subject.
select exists (select from webhooks.sites s where s.site_id = $1) as has_site,
  (select count(*) from webhooks.endpoints p where p.site_id = $1)::int as endpoints,
  exists (select from webhooks.endpoints p where p.site_id = $1 and p.endpoint_id = $2) as has_endpoint,
  exists (
    select from webhooks.events e
    where e.site_id = $1 and left(e.subject, 400) = left($3, 400) and e.subject = $3) as has_subject,
  (select d.created_at from webhooks.site_deliveries($1, $2, lim => 1) d) as newest_at
