-- Sites that count as evidence of a storm: an endpoint began to fail lately, still fails, and its owner does not know
-- yet. One endpoint a site, so that no site makes a storm alone. Refusals to send, slow filters and recoveries do not
-- count. $1 timestamptz: no endpoint that began to fail before this counts; $2 timestamptz: nor one without a failure
-- since. There are as many incidents as failing endpoints: all are read. Not more than 10,000 sites.
select distinct on (p.site_id) p.site_id, left(p.url, 300) as url
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
where i.state = 'shaky' and i.window_at is not null and i.recovering_at is null and i.last_outcome not in ('blocked', 'unsent')
  and i.first_failure_at >= $1 and i.last_failure_at >= $2
order by p.site_id, p.endpoint_id
limit 10000
