-- Removes settled deliveries from the backlog. $1 bigint[], $2 bigint[]: event and endpoint ids. Returns those whose
-- row is locked: it stays, and nothing waits. Lives on the primary key.
with u as materialized (
  select * from unnest($1::bigint[], $2::bigint[]) as u(event_id, endpoint_id)
), free as materialized (
  select b.event_id, b.endpoint_id from u join webhooks.backlog b using (event_id, endpoint_id) for update of b skip locked
), gone as (
  delete from webhooks.backlog b using free
  where b.event_id = free.event_id and b.endpoint_id = free.endpoint_id
)
select b.event_id, b.endpoint_id from u join webhooks.backlog b using (event_id, endpoint_id)
where (b.event_id, b.endpoint_id) not in (select event_id, endpoint_id from free)
