-- Failing endpoints: what is known of them, what their owners were told, and what owners may say to that.
-- min_daemon: 0.1.0

-- An incident is one endpoint's trouble, from its first failure to its recovery. The recorder writes its upper half
-- with the attempts themselves; care writes the rest.
alter table webhooks.incidents
  drop column since,
  drop column failing_since,
  drop column reported,
  drop column updated_at,
  add constraint "state is a known one"
    check (state in ('healthy', 'shaky', 'failing', 'partly_failing', 'flapping', 'disabled')),
  add column first_failure_at timestamptz not null,
  add column last_failure_at timestamptz not null,
  add column last_success_at timestamptz,
  add column recovering_at timestamptz,
  add column window_at timestamptz,
  add column successes bigint not null default 0,
  add column last_outcome text not null,
  add column last_status smallint,
  add column last_error text,
  add column last_event_id bigint not null,
  add column last_attempt smallint not null,
  add column marks jsonb not null default '{}',
  add column disable_at timestamptz,
  add column next_look_at timestamptz not null;
comment on table webhooks.incidents is 'Endpoints in trouble, and what their owners know of it; the daemon''s own';
comment on column webhooks.incidents.recovering_at is 'The first 2xx after the latest failure';
comment on column webhooks.incidents.window_at is 'The first failure that no window has closed over';
comment on column webhooks.incidents.successes is 'Deliveries since it began';
comment on column webhooks.incidents.disable_at is 'When the endpoint will be switched off if nothing changes';
comment on column webhooks.incidents.next_look_at is 'When something may have to be told or done at the earliest';

alter table webhooks.emails add column before jsonb not null default '{}';
create index emails_queued on webhooks.emails (next_attempt_at) where state = 'queued';
create index emails_of_owner on webhooks.emails (owner_email, created_at);
comment on table webhooks.emails is 'Mails to owners: what was told, to whom, and whether it went out';
comment on column webhooks.emails.digest is 'What the mail says, as values; rendered when it is sent';
comment on column webhooks.emails.before is 'The incidents as they were before this mail was made: it is folded into the next one if it never goes out';

-- How endpoints are ----------------------------------------------------------------------------------------------

create view webhooks.endpoint_health as
select p.endpoint_id, p.site_id, p.url, p.enabled, p.disabled_reason,
  case when not p.enabled then 'disabled' else coalesce(i.state, 'healthy') end as health,
  case when i.state <> 'healthy' then i.first_failure_at end as failing_since,
  i.last_success_at, i.last_failure_at, i.last_status, i.last_error,
  b.waiting, b.parked, b.held, d.dead,
  case when p.enabled then i.disable_at end as disable_at
from webhooks.endpoints p
left join webhooks.incidents i using (endpoint_id)
cross join lateral (
  select count(*) filter (where r.state = 'waiting') as waiting, count(*) filter (where r.state = 'parked') as parked,
    count(*) filter (where r.state = 'held') as held
  from webhooks.backlog w
  cross join lateral (  -- rows follow the endpoint's switch in pages: what they will be is what counts
    select case when w.reason = 'quarantined' or not p.enabled then 'held'
                when w.state = 'held' then 'waiting' else w.state end as state) r
  where w.endpoint_id = p.endpoint_id) b
cross join lateral (select count(*) as dead from webhooks.dead where endpoint_id = p.endpoint_id) d;
comment on view webhooks.endpoint_health is 'One row per endpoint: whether it works, since when not, and what waits for it';

-- What owners and operators may say ------------------------------------------------------------------------------

create function webhooks.snooze_endpoint(endpoint_id bigint, until timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  update webhooks.endpoints e set snoozed_until = until where e.endpoint_id = snooze_endpoint.endpoint_id;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  insert into webhooks.operations (what, detail)
  values ('snooze_endpoint', jsonb_build_object('endpoint_id', snooze_endpoint.endpoint_id, 'until', until));
end $$;
comment on function webhooks.snooze_endpoint is 'No mails about an endpoint until then; null: mails again';

create function webhooks.mute_owner(owner_email text, until timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  insert into webhooks.owners as o (owner_email, muted_until) values (lower(mute_owner.owner_email), until)
  on conflict on constraint owners_pkey do update set muted_until = excluded.muted_until;
  insert into webhooks.operations (what, detail)
  values ('mute_owner', jsonb_build_object('owner_email', lower(mute_owner.owner_email), 'until', until));
end $$;
comment on function webhooks.mute_owner is 'No mails to an owner until then; null: mails again';

create function webhooks.unsubscribe(token text) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  whose text;
begin
  update webhooks.owners o set unsubscribed_at = coalesce(o.unsubscribed_at, now())
  where o.unsubscribe_token = token returning o.owner_email into whose;
  if not found then
    raise exception 'the token is nobody''s' using errcode = 'no_data_found';
  end if;
  insert into webhooks.operations (what, detail) values ('unsubscribe', jsonb_build_object('owner_email', whose));
end $$;
comment on function webhooks.unsubscribe is 'What the link in a mail does: no more mails to the owner whose token it is';

revoke all on function webhooks.snooze_endpoint, webhooks.mute_owner, webhooks.unsubscribe from public;
