-- Endpoints with an incident that answered 2xx in a batch. $1 bigint[]: endpoint ids; $2, $3 timestamptz[]: first and
-- last 2xx; $4 bigint[]: how many. Returns those whose incident is locked: nothing is noted of them, and nothing waits.
-- Lives on the primary key.
with u as materialized (
  select * from unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[]) as u(endpoint_id, first_at, last_at, successes)
), free as materialized (
  select i.endpoint_id from u join webhooks.incidents i using (endpoint_id)
  where i.state <> 'healthy'
  for update of i skip locked
), noted as (
  update webhooks.incidents i set
    last_success_at = greatest(i.last_success_at, u.last_at),
    recovering_at = coalesce(i.recovering_at, u.first_at),
    successes = i.successes + u.successes,
    next_look_at = case when i.recovering_at is null then least(i.next_look_at, u.first_at) else i.next_look_at end
  from free join u using (endpoint_id)
  where i.endpoint_id = free.endpoint_id
)
select i.endpoint_id from u join webhooks.incidents i using (endpoint_id)
where i.state <> 'healthy' and i.endpoint_id not in (select endpoint_id from free)
