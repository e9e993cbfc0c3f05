-- Where the daemon has run, and how that ended. Read by whoever owns the shards, and by check; lives on the primary key.
select host, server, run, unclean_ends, suspects::text as suspects from webhooks.home order by host, server
