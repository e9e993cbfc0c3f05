-- Makes the shards' rows at the first run. $1 int: number of shards.
insert into webhooks.shards (shard) select generate_series(0, $1 - 1) where not exists (select from webhooks.shards)
on conflict do nothing
