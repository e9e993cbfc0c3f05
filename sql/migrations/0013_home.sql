-- Where the daemon runs, and what became of the run before: an end without a word is counted, and what was on its way
-- then is suspected. What is held for that, quarantined, is released by a function.
-- min_daemon: 0.1.0

alter table webhooks.home add column run text;
comment on table webhooks.home is 'Where the daemon has run: machine and address of the server. Where both are new it holds still until it is told to adopt';
comment on column webhooks.home.run is 'The run that lives here, or ended without a word; null after an orderly end';
comment on column webhooks.home.unclean_ends is 'Ends without a word in a row';
comment on column webhooks.home.suspects is 'Deliveries that were on their way at such an end, and at how many';

create function webhooks.release(event_id bigint, endpoint_id bigint default null) returns bigint
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
comment on function webhooks.release is 'Sends an event''s quarantined deliveries (all, or one endpoint''s) on their way again. Returns how many';
revoke all on function webhooks.release from public;
