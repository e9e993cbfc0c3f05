-- Takes a shard's lock for the life of this session, with the key after the shard's number. $1 int: shard.
select pg_try_advisory_lock(1885825131, $1 + 1)
