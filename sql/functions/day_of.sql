-- The number of a day, by which events, attempts and dead are partitioned: the upper 32 bits of an event_id.
create or replace function webhooks.day_of(at timestamptz default now()) returns int
language sql stable as $$ select (at at time zone 'UTC')::date - date '2020-01-01' $$;
comment on function webhooks.day_of is 'Days since 2020-01-01, UTC: the upper part of an event_id';
