-- A storm is over: every incident that it held back is due for a check now. If it was a real storm, the owner's window
-- starts again, so that failures caused by our own trouble have the time of a first failure to be reported. $1
-- timestamptz: now; $2 bool: it was real; $3 timestamptz: incidents that began before this have been held for long
-- enough, and their window stays.
update webhooks.incidents set next_look_at = least(next_look_at, $1),
  window_at = case when $2 and window_at is not null and first_failure_at > $3 then greatest(window_at, $1) else window_at end
where state = 'shaky' and (next_look_at > $1 or $2 and window_at < $1)
