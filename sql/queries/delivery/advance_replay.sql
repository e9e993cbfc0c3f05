-- Puts a replay's next deliveries into backlog; returns no row if the replay does not run any more. $1 bigint: replay
-- id; $2 int: events (or dead deliveries) to read; $3 int: maximum number of deliveries to take.
select taken, ended from webhooks.advance_replay($1, $2, $3)
