-- Marks that the same database may still run elsewhere: it does not become home only because the other one is stopped for
-- a moment. $1 text: host; $2 text: server; $3 text: the other address. Lives on the primary key.
insert into webhooks.home (host, server, rival) values ($1, $2, $3)
on conflict (host, server) do update set rival = excluded.rival, seen_at = now()
where home.rival is distinct from excluded.rival
