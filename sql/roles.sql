-- The roles of a pghookd schema, each with the least it needs. Repeatable; roles belong to the whole cluster,
-- so a role that exists already is used as it is. Run by `pghookd migrate --roles`, as a role that may create roles.

do $$
declare
  r text;
begin
  foreach r in array array['webhooks_producer', 'webhooks_admin', 'webhooks_reader', 'webhooks_support', 'webhooks_site', 'webhooks_daemon']
  loop
    if not exists (select from pg_roles where rolname = r) then
      begin
        execute format('create role %I nologin', r);
      exception when duplicate_object or unique_violation then
        null;  -- another database of this cluster made it in this moment
      end;
    end if;
  end loop;
end $$;

grant usage on schema webhooks to webhooks_producer, webhooks_admin, webhooks_reader, webhooks_support, webhooks_site,
  webhooks_daemon;

-- Producers insert events. They may read back what Postgres filled in, since Django, SQLAlchemy and others add RETURNING.
grant insert (site_id, type, payload, subject, traceparent, ordering_key, dedupe_key, supersede_key, deliver_after, deliver_before),
  select (event_id, created_at, xid) on webhooks.events to webhooks_producer;
grant execute on function webhooks.webhook_id, webhooks.explain, webhooks.emit_changes, webhooks.watch_table
  to webhooks_producer;
do $$
declare
  f regprocedure;
begin
  for f in select oid from pg_proc where pronamespace = 'webhooks'::regnamespace and proname = 'emit' loop
    execute format('grant execute on function %s to webhooks_producer, webhooks_admin', f);
  end loop;
end $$;

-- Readers see what happened, but no secret, no payload, no owner's address, and of URLs scheme and host.
revoke all on webhooks.operations from webhooks_reader;
grant select on webhooks.deliveries, webhooks.endpoint_health, webhooks.event_types, webhooks.audit, webhooks.unclaimed to webhooks_reader;
grant execute on function webhooks.nearest_name to webhooks_reader, webhooks_admin;
grant select (at, actor, what) on webhooks.operations to webhooks_reader;
grant select (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, error, site_id, revision,
  cause) on webhooks.attempts to webhooks_reader;
grant execute on function webhooks.explain, webhooks.webhook_id, webhooks.event_id to webhooks_reader;

-- Support staff help an owner: they see answers, emails and causes, enable endpoints and replay; no payload, no secret, no
-- header, no token, and of URLs scheme and host.
grant select on webhooks.deliveries, webhooks.endpoint_health, webhooks.event_types, webhooks.audit, webhooks.unclaimed to webhooks_support;
grant select on webhooks.attempts to webhooks_support;
grant select (email_id, owner_email, kind, window_start, message_id, subject, state, attempts, next_attempt_at, created_at, sent_at, error)
  on webhooks.emails to webhooks_support;
grant execute on function webhooks.explain, webhooks.webhook_id, webhooks.event_id, webhooks.nearest_name,
  webhooks.enable_endpoint, webhooks.plan_replay, webhooks.replay, webhooks.pause_replay, webhooks.resume_replay, webhooks.cancel_replay
  to webhooks_support;

-- A site's own pages: what the functions show of the site that webhooks.site_id names, and no table.
grant execute on function webhooks.site_deliveries, webhooks.missed_since, webhooks.endpoint_activity,
  webhooks.delivery_detail
  to webhooks_site, webhooks_reader, webhooks_support, webhooks_admin;
grant execute on function webhooks.event_payload to webhooks_site, webhooks_admin;
grant execute on function webhooks.send_again to webhooks_site, webhooks_support, webhooks_admin;

-- Administrators register sites and endpoints and act on deliveries through the functions.
grant select, insert, update, delete on webhooks.sites, webhooks.endpoints, webhooks.owners, webhooks.event_types to webhooks_admin;
grant select on webhooks.deliveries, webhooks.endpoint_health, webhooks.attempts, webhooks.backlog, webhooks.dead, webhooks.events, webhooks.operations,
  webhooks.emails, webhooks.replays, webhooks.audit, webhooks.unclaimed, webhooks.endpoint_revisions to webhooks_admin;
grant execute on function webhooks.webhook_id, webhooks.event_id, webhooks.explain, webhooks.new_secret,
  webhooks.enable_endpoint, webhooks.disable_endpoint, webhooks.rotate_secret, webhooks.takes, webhooks.snooze_endpoint,
  webhooks.mute_owner, webhooks.unsubscribe to webhooks_admin;
grant execute on function webhooks.add_endpoint, webhooks.send_test, webhooks.cancel, webhooks.emit_changes, webhooks.watch_table to webhooks_admin;
grant execute on function webhooks.plan_replay, webhooks.replay, webhooks.pause_replay, webhooks.resume_replay, webhooks.cancel_replay to webhooks_admin;
grant execute on function webhooks.wrap_secrets, webhooks.forget, webhooks.erase, webhooks.release, webhooks.why_kept to webhooks_admin;

-- The daemon reads the log and writes the outcomes, and nothing else by its own rights: it changes events only through
-- functions. Rights on the parents are enough: partitions get none. Statements that need the tables' owner: see the end.
revoke all on all tables in schema webhooks from webhooks_daemon;
grant select on all tables in schema webhooks to webhooks_daemon;
do $$
declare
  part regclass;
begin
  for part in select oid from pg_class where relnamespace = 'webhooks'::regnamespace and relispartition and relkind = 'r' loop
    execute format('revoke all on %s from webhooks_daemon', part);
  end loop;
end $$;
grant insert on webhooks.attempts to webhooks_daemon;
grant insert (what, detail) on webhooks.operations to webhooks_daemon;  -- the actor is the session's login
grant insert, delete on webhooks.dead, webhooks.partitions to webhooks_daemon;
grant update (enabled, disabled_reason, ready, why, judged_at) on webhooks.endpoints to webhooks_daemon;
grant insert, update on webhooks.emails, webhooks.owners to webhooks_daemon;
grant update on webhooks.replays to webhooks_daemon;
grant insert, update, delete on webhooks.backlog, webhooks.shards, webhooks.incidents, webhooks.home to webhooks_daemon;
grant insert, update on webhooks.unclaimed_events to webhooks_daemon;
grant select, update on sequence webhooks.events_event_id_seq to webhooks_daemon;

-- The functions that the daemon calls, and nothing else: it cannot emit, add or alter an endpoint, or forget a site.
-- This is the only list. A new function that sql/queries call has its name here, as have those that it calls in turn
-- unless it is SECURITY DEFINER. `pghookd check` reads the list, tests/component/sql/test_grants.py tries all others.
revoke execute on all functions in schema webhooks from webhooks_daemon;
grant execute on function
  webhooks.day_of, webhooks.attach_day, webhooks.note_day, webhooks.enter_day, webhooks.leave_day, webhooks.why_kept,  -- days
  webhooks.takes, webhooks.matches, webhooks.shard_of, webhooks.nearest_name,  -- the endpoints and the shard of an event
  webhooks.advance_replay, webhooks.replay_page, webhooks.replay_any, webhooks.replay_dead, webhooks.is_erased,  -- replays
  webhooks.wrap_secrets, webhooks.erase_payloads, webhooks.erase_responses, webhooks.erase_subject, webhooks.forget_page,  -- privacy
  webhooks.roll_up_hour,  -- activity
  webhooks.webhook_id, webhooks.event_id, webhooks.explain, webhooks.delivery_detail  -- what `pghookd event` shows
  to webhooks_daemon;

-- DETACH CONCURRENTLY, DROP and ANALYZE need the tables' owner, and no role is made a member of a superuser. So the
-- tables of a superuser go to a role of their own, webhooks_owner. `pghookd migrate` acts as the owner from then on.
do $$
declare
  owner constant name := (select tableowner from pg_tables where schemaname = 'webhooks' and tablename = 'events');
  each text;
begin
  if not (select rolsuper from pg_roles where rolname = owner) then
    return;
  end if;
  if not exists (select from pg_roles where rolname = 'webhooks_owner') then
    begin
      create role webhooks_owner nologin;
    exception when duplicate_object or unique_violation then
      null;  -- another database of this cluster made it in this moment
    end;
  end if;
  for each in
    select format('schema %I', nspname) from pg_namespace where nspname in ('webhooks', 'webhooks_archive')
    union all
    select format('%s %s', case relkind when 'v' then 'view' when 'c' then 'type' else 'table' end, oid::regclass) from pg_class
    where relnamespace in ('webhooks'::regnamespace, 'webhooks_archive'::regnamespace) and relkind in ('r', 'p', 'v', 'c')
    union all
    select format('function %s', oid::regprocedure) from pg_proc where pronamespace = 'webhooks'::regnamespace
  loop
    execute format('alter %s owner to webhooks_owner', each);
  end loop;
end $$;

-- The daemon's role is a member of the owner and inherits nothing from it: only what keeps the days in order acts as the
-- owner, by SET ROLE. Before 16 that is a matter of the member role as a whole.
do $$
declare
  owner constant name := (select tableowner from pg_tables where schemaname = 'webhooks' and tablename = 'events');
  statement constant text := format(case when current_setting('server_version_num')::int >= 160000
    then 'grant %I to webhooks_daemon with inherit false' else 'grant %I to webhooks_daemon' end, owner);
begin
  if current_setting('server_version_num')::int < 160000 then
    alter role webhooks_daemon noinherit;
  end if;
  if not pg_has_role('webhooks_daemon', owner, 'member') then
    begin
      execute statement;
    exception when insufficient_privilege or invalid_grant_operation then  -- from 16 on no role may grant itself
      raise warning 'webhooks_daemon is not a member of %: %', owner, sqlerrm
        using hint = format('A superuser should run: %s', statement);
    end;
  end if;
end $$;
