-- Sends an event's quarantined deliveries again, for operators.
create or replace function webhooks.release(event_id bigint, endpoint_id bigint default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  released bigint;
  changed text;
begin
  if event_id is null then
    raise exception 'release wants an event' using errcode = 'null_value_not_allowed';
  end if;
  with freed as (
    update webhooks.backlog b
    set state = 'waiting', reason = 'queued', next_attempt_at = now(), since = now(), released_at = now()
    where b.event_id = release.event_id and (release.endpoint_id is null or b.endpoint_id = release.endpoint_id)
      and b.reason = 'quarantined'
    returning b.endpoint_id
  )
  select count(*), string_agg(f.endpoint_id::text, ',') into released, changed from freed f;
  if released > 0 then
    perform pg_notify('pghookd', 'due');
    perform pg_notify('pghookd', case when length(changed) < 7000 then 'endpoints:' || changed else 'endpoints' end);
    insert into webhooks.operations (what, detail)
    values ('release', jsonb_build_object('event_id', release.event_id, 'endpoint_id', release.endpoint_id, 'released', released));
  end if;
  return released;
end $$;
comment on function webhooks.release is
  'Releases an event''s quarantined deliveries (all, or one endpoint''s) for new attempts. Returns how many';
