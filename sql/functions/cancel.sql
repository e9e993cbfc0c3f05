-- Gives up the rest of an event's deliveries, for operators. Notifies the daemon of ordered endpoints: the deliveries
-- behind these may go.
create or replace function webhooks.cancel(event_id bigint, endpoint_id bigint default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  moved bigint;
  changed text;
begin
  if event_id is null then
    raise exception 'cancel wants an event' using errcode = 'null_value_not_allowed';
  end if;
  with gone as (
    delete from webhooks.backlog b
    where b.event_id = cancel.event_id and (cancel.endpoint_id is null or b.endpoint_id = cancel.endpoint_id)
    returning b.event_id, b.endpoint_id, b.site_id, b.attempts
  ), buried as (
    insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
    select g.event_id, g.endpoint_id, g.site_id, 'cancelled', g.attempts from gone g
    where exists (select from pg_inherits where inhrelid = to_regclass('webhooks.dead_' || g.event_id / 4294967296))
    on conflict on constraint dead_pkey do update set reason = 'cancelled', attempts = excluded.attempts, since = now()
  )
  select count(*), string_agg(distinct g.endpoint_id::text, ',') filter (where p.ordered) into moved, changed
  from gone g left join webhooks.endpoints p using (endpoint_id);
  if changed is not null then
    perform pg_notify('pghookd', case when length(changed) < 7000 then 'endpoints:' || changed else 'endpoints' end);
  end if;
  if moved > 0 then
    insert into webhooks.operations (what, detail)
    values ('cancel', jsonb_build_object('event_id', cancel.event_id, 'endpoint_id', cancel.endpoint_id, 'cancelled', moved));
  elsif not exists (select from webhooks.events e where e.event_id = cancel.event_id) then
    raise exception 'there is no event %', cancel.event_id using errcode = 'no_data_found';
  end if;
  return moved;
end $$;
comment on function webhooks.cancel is
  'Gives up the unfinished deliveries of an event (all, or one endpoint''s): from the backlog to dead, cancelled. '
  'Returns how many. A request in flight is not called back, but is not tried again';
