-- A storm is over: whatever was held back is looked at now, and, where it was one indeed, its owner's window begins anew,
-- so that what our own trouble left behind has the time of a first failure to arrive. $1 timestamptz: now; $2 bool: it was;
-- $3 timestamptz: what began to fail before this has been held for long enough, and its window stays.
update webhooks.incidents set next_look_at = least(next_look_at, $1),
  window_at = case when $2 and window_at is not null and first_failure_at > $3 then greatest(window_at, $1) else window_at end
where state = 'shaky' and (next_look_at > $1 or $2 and window_at < $1)
