-- Enters an instance that stands by. The owner's row proves that this is its database: the server has not restarted since
-- the owner entered the row. Returns nothing where there is no such proof. $1 text: host; $2 text: server; $3 text:
-- database.home. Lives on the primary key; an owner's row is left as it is.
insert into webhooks.home (host, server, beside, name, started_at, seen_at)
select $1, $2, h.run, h.name, h.started_at, now()
from webhooks.home h
where h.run is not null and h.started_at = pg_postmaster_start_time() and h.name = $3
order by h.seen_at desc limit 1
on conflict (host, server) do update
set beside = case when home.run is null then excluded.beside end,
  started_at = excluded.started_at, seen_at = excluded.seen_at, rival = null
returning true as entered
