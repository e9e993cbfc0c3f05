-- Owns a shard as long as this session lives. $1 int: shard.
select pg_try_advisory_lock(1885825131, $1 + 1)
