-- Counts the deliveries that wait for one endpoint. Rows follow its switch in pages, so that the switch counts and not
-- their state. $1 bigint: endpoint id. Lives on backlog_of_endpoint; not more than 1,000,000 rows.
select count(*) filter (where p.enabled) as waiting, count(*) filter (where not p.enabled) as held,
  min(b.next_attempt_at) filter (where p.enabled and b.state = 'waiting') as next_attempt_at
from (select state, next_attempt_at from webhooks.backlog where endpoint_id = $1 limit 1000000) b
join webhooks.endpoints p on p.endpoint_id = $1
