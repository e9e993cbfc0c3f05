-- Ends a replay for good. $1 bigint: its id.
select webhooks.cancel_replay($1)
