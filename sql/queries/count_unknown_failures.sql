-- Endpoints that fail and whose owners do not know yet, and over how many hosts: what makes a storm. Refusals to send,
-- slow filters and recoveries do not count. $1 timestamptz: no failure before this counts.
select count(*)::int as failing, count(distinct lower(substring(p.url from '^[a-zA-Z]+://([^/:?#]+)')))::int as hosts
from webhooks.incidents i
join webhooks.endpoints p using (endpoint_id)
where i.state = 'shaky' and i.window_at is not null and i.recovering_at is null and i.last_outcome <> 'blocked'
  and not (i.last_outcome = 'unsent' and i.last_error = 'filter_slow')
  and i.last_failure_at >= $1
