-- The acts of operators: their record, replays, and the erasing of sites and old data.
-- min_daemon: 0.1.0

create table webhooks.operations (
  at     timestamptz not null default now(),
  actor  text not null default  -- as webhooks.current_actor(), which is made after the tables
         session_user || coalesce(' (' || nullif(concat_ws(', ', nullif(current_setting('application_name'), ''),
           nullif(left(current_setting('webhooks.actor', true), 100), '')), '') || ')', ''),
  what   text not null,
  detail jsonb not null default '{}'
);
create index operations_by_time on webhooks.operations (at);
comment on table webhooks.operations is
  'One row per action, such as enable, replay, rotate or adopt: its actor, time and details';

create table webhooks.replays (
  replay_id        bigint generated always as identity primary key,
  spec             jsonb not null,
  rate_per_s       real not null default 100
                   constraint "rate_per_s is more than 0 and at most 1000" check (rate_per_s > 0 and rate_per_s <= 1000),
  total            bigint not null default 0,
  done             bigint not null default 0,
  state            text not null default 'running' constraint "state is a known one"
                   check (state in ('running', 'paused', 'done', 'cancelled')),
  created_at       timestamptz not null default now(),
  endpoints        int not null default 0,
  last_event_id    bigint not null default 0,
  settled_event_id bigint not null default 0,
  after_event_id   bigint not null default 0,
  after_endpoint_id bigint not null default 0,
  started_at       timestamptz,
  ended_at         timestamptz
);
create index replays_running on webhooks.replays (replay_id) where state = 'running';
comment on table webhooks.replays is 'Replays and how far they are; see webhooks.replay';
comment on column webhooks.replays.spec is 'The arguments of webhooks.replay';
comment on column webhooks.replays.total is 'Deliveries that it found when it was asked for';
comment on column webhooks.replays.done is 'Deliveries queued so far';
comment on column webhooks.replays.endpoints is 'To how many endpoints they go';
comment on column webhooks.replays.last_event_id is 'No event after this one is replayed';
comment on column webhooks.replays.settled_event_id is
  'Up to here the daemon has settled everything: an event without a row was missed';
comment on column webhooks.replays.after_event_id is 'With after_endpoint_id: how far it has read';

create table webhooks.upkeep (
  what           text primary key constraint "what is a known one"
                 check (what in ('payloads', 'responses', 'activity')),
  after_event_id bigint not null default 0,
  again_from     bigint,
  began_at       timestamptz,
  ended_at       timestamptz,
  next_hour      timestamptz
);
insert into webhooks.upkeep (what, next_hour) values ('activity', date_trunc('hour', now(), 'UTC'));
comment on table webhooks.upkeep is
  'How far the log was read for payloads and answers that have to be erased, and for endpoint_hours; the daemon''s own';
comment on column webhooks.upkeep.again_from is
  'The first event that could not be erased yet: the next walk begins there';
comment on column webhooks.upkeep.next_hour is 'Of activity: the first hour that is not in endpoint_hours yet';

create table webhooks.forgotten (
  site_id        text collate "C" primary key,
  asked_at       timestamptz not null default now(),
  asked_xid      xid8 not null default pg_current_xact_id(),
  walk           smallint not null default 1,
  after_event_id bigint not null default 0,
  to_event_id    bigint not null,
  erased         bigint not null default 0,
  after_hour     timestamptz not null default '-infinity'
);
comment on table webhooks.forgotten is 'Sites that are being erased, until nothing is left of them; the daemon''s own';

create table webhooks.erasures (
  site_id     text collate "C" not null,
  subject     text not null,
  pending     text not null constraint "pending is deliver or cancel" check (pending in ('deliver', 'cancel')),
  asked_at    timestamptz not null default now(),
  asked_xid   xid8 not null default pg_current_xact_id(),
  actor       text not null,
  to_event_id bigint not null,
  events      bigint not null default 0,
  answers     bigint not null default 0,
  primary key (site_id, subject)
);
comment on table webhooks.erasures is
  'Subjects whose payloads and answers are being erased, until nothing is left of them; the daemon''s own';
comment on column webhooks.erasures.to_event_id is 'Events that are inserted later are not erased';
