-- Erases a site, for operators. Its own rows go at once. The log has no index by site, and nobody may wait for a scan
-- of it: it is walked in pages, by this function for a second, and by the daemon for the rest; then once more two
-- minutes later, for events that were in flight. When no attempts are left, a third walk erases the counts of them.
-- needs: forget_owner, forget_page, newest_event_id
create or replace function webhooks.forget(site_id text) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  until constant timestamptz := clock_timestamp() + interval '1 second';
  ids bigint[];
  owner text;
  n bigint;
  total bigint := 0;
begin
  if site_id is null then
    raise exception 'forget wants a site' using errcode = 'null_value_not_allowed';
  end if;
  select array_agg(p.endpoint_id) into ids from webhooks.endpoints p where p.site_id = forget.site_id;
  perform set_config('webhooks.recorded', 'on', true);
  delete from webhooks.sites s where s.site_id = forget.site_id returning s.owner_email into owner;
  get diagnostics total = row_count;
  perform set_config('webhooks.recorded', 'off', true);
  ids := coalesce(ids, '{}');
  -- Those of endpoints that are gone, too; one that has moved keeps the others, without the name of this site.
  delete from webhooks.endpoint_revisions r where r.site_id = forget.site_id;
  update webhooks.endpoint_revisions r set changed = r.changed - 'site_id'
  where r.changed -> 'site_id' ? forget.site_id;
  total := total + cardinality(ids) + webhooks.forget_owner(owner, forget.site_id);
  update webhooks.replays r
  set state = case when r.state in ('running', 'paused') then 'cancelled' else r.state end,
    ended_at = coalesce(r.ended_at, now()), spec = r.spec - '{site_id,endpoint_id,types,event_ids}'::text[]
  where r.spec ->> 'site_id' = forget.site_id or (r.spec ->> 'endpoint_id') = any (ids::text[]);
  delete from webhooks.erasures e where e.site_id = forget.site_id;  -- first: one that ends just now leaves a receipt
  update webhooks.operations o set detail = '{}'
  where o.detail ->> 'site_id' = forget.site_id or (o.detail ->> 'endpoint_id') = any (ids::text[]);
  insert into webhooks.forgotten as g (site_id, to_event_id) values (forget.site_id, webhooks.newest_event_id())
  on conflict on constraint forgotten_pkey do update
  set asked_at = excluded.asked_at, asked_xid = excluded.asked_xid, to_event_id = excluded.to_event_id,
    walk = 1, after_hour = excluded.after_hour,
    after_event_id = case when g.walk = 1 and total = 0 then g.after_event_id else 0 end;
  insert into webhooks.operations (what, detail)
  values ('forget', jsonb_build_object('site_sha256', encode(sha256(convert_to(forget.site_id, 'UTF8')), 'hex'),
    'endpoints', cardinality(ids)));
  loop
    n := webhooks.forget_page(forget.site_id, 5000);
    total := total + coalesce(n, 0);
    exit when n is null or clock_timestamp() > until
      or (select g.walk = 2 from webhooks.forgotten g where g.site_id = forget.site_id);
  end loop;
  return total;
end $$;
comment on function webhooks.forget is
  'Erases a site: itself, its endpoints, their events, deliveries, attempts and mails, and its owner where they have '
  'no other. Sending stops at once; of the log as much goes as a second allows, the daemon erases the rest and '
  'checks again after two minutes. Returns how many rows are gone already';
