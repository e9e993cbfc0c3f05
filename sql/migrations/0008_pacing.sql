-- How fast an endpoint's requests may start. The column is there since the first migration and had no effect; NaN and
-- infinity, which are more than 0 to Postgres, passed its constraint.
-- min_daemon: 0.1.0

update webhooks.endpoints set rate_per_s = case when rate_per_s < 0.001 then 0.001 end
where rate_per_s not between 0.001 and 10000;

alter table webhooks.endpoints
  drop constraint "rate_per_s is positive",
  add constraint "rate_per_s is 0.001 to 10000" check (rate_per_s between 0.001 and 10000);
comment on column webhooks.endpoints.concurrency is 'Requests in flight at the most; null: as the setting delivery.endpoint_concurrency says';
comment on column webhooks.endpoints.rate_per_s is 'Requests that may start in a second, live, late and replayed together; null: as fast as it answers';
