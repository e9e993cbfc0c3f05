-- Records the place where this instance owns the shards; earlier unclean ends are carried over. $1 text: host; $2 text:
-- server; $3 text: run; $4 int: unclean ends in a row; $5 text: suspects, JSON. Lives on the primary key.
with elsewhere as (
  update webhooks.home set run = null, unclean_ends = 0, suspects = '[]'
  where (host, server) <> ($1, $2) and (run is not null or unclean_ends > 0 or suspects <> '[]')
)
insert into webhooks.home (host, server, run, unclean_ends, suspects, started_at, seen_at)
values ($1, $2, $3, $4, $5::text::jsonb, pg_postmaster_start_time(), now())
on conflict (host, server) do update
set run = excluded.run, unclean_ends = excluded.unclean_ends, suspects = excluded.suspects, beside = null, rival = null,
  started_at = excluded.started_at, seen_at = excluded.seen_at
