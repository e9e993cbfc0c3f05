-- Which endpoints have parked deliveries: asked once an epoch, then known from what is written.
-- A loose walk along backlog_parked, a step per endpoint.
with recursive step(endpoint_id) as (
  (select endpoint_id from webhooks.backlog where state = 'parked' order by endpoint_id limit 1)
  union all
  select (select b.endpoint_id from webhooks.backlog b where b.state = 'parked' and b.endpoint_id > step.endpoint_id
          order by b.endpoint_id limit 1)
  from step where step.endpoint_id is not null)
select endpoint_id from step where endpoint_id is not null
