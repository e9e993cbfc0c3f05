-- The shard of a site. Postgres inlines it, so that no row pays for a call;
-- tests/component/sql/test_plans.py holds that.
create or replace function webhooks.shard_of(site_id text, shards bigint) returns int
language sql immutable parallel safe
return mod(mod(hashtextextended(site_id, 0), shards) + shards, shards)::int;
comment on function webhooks.shard_of is 'The part of the log to which a site belongs, of so many; the daemon''s own';
