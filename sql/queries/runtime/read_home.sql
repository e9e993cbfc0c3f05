-- Where instances owned the shards or stood by, and how that ended; the newest first. Read by the owner of the shards
-- and by check; the table holds a few dozen rows.
select host, server, run, unclean_ends, suspects::text as suspects, name, started_at, rival
from webhooks.home order by seen_at desc, host, server
