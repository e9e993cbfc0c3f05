-- Into how many shards the first run has divided the log; 0 before it.
select count(*)::int from webhooks.shards
