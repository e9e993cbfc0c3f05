-- A storm is over: whatever was held back is looked at now. $1 timestamptz: now.
update webhooks.incidents set next_look_at = $1 where state = 'shaky' and next_look_at > $1
