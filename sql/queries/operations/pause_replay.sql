-- Pauses a replay. $1 bigint: its id.
select webhooks.pause_replay($1)
