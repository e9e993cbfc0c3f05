-- Puts a replay's next deliveries into backlog; no row where it does not run any more. $1 bigint: replay id; $2 int: how
-- many events (or dead deliveries) to look at; $3 int: how many deliveries to take at the most.
select taken, ended from webhooks.advance_replay($1, $2, $3)
