-- What waits for one endpoint. $1 bigint: endpoint id. Lives on backlog_of_endpoint; not more than 1,000,000 rows.
select count(*) filter (where state <> 'held') as waiting, count(*) filter (where state = 'held') as held,
  min(next_attempt_at) filter (where state = 'waiting') as next_attempt_at
from (select state, next_attempt_at from webhooks.backlog where endpoint_id = $1 limit 1000000) b
