-- Rows written as held while their endpoint was being enabled: sent out again. Run after each change of an endpoint,
-- on the session that writes the rows, so that the two cannot cross. $1 bigint[]: endpoint ids, null: all.
update webhooks.backlog b
set state = 'waiting', reason = 'queued', next_attempt_at = now(), since = now(), released_at = now()
from webhooks.endpoints p
where p.endpoint_id = b.endpoint_id and p.enabled and b.state = 'held' and b.reason = 'disabled'
  and ($1::bigint[] is null or b.endpoint_id = any ($1))
