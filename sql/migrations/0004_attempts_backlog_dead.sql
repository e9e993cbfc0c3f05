-- The deliveries: requests that were made, deliveries that wait, and deliveries that were given up. An event that no
-- endpoint takes has no row here, nor has one that is on its first attempt.
-- min_daemon: 0.1.0

create table webhooks.attempts (
  event_id     bigint not null,
  endpoint_id  bigint not null,
  attempted_at timestamptz not null,
  duration_ms  real not null,
  revision     int,
  attempt      smallint not null,
  status       smallint,
  outcome      text not null constraint "outcome is a known one"
               check (outcome in ('delivered', 'refused', 'timeout', 'unreachable', 'blocked', 'failed')),
  error        text,
  cause        text constraint "cause is a known one"
               check (cause in ('live', 'retry', 'replay', 'test', 'probe', 'recovery')),
  response     bytea,
  evidence     jsonb,
  site_id      text collate "C" not null
) partition by range (event_id);
create unique index attempts_once on webhooks.attempts (event_id, endpoint_id, attempt);
create index attempts_of_endpoint on webhooks.attempts (endpoint_id, event_id);
create index attempts_by_time on webhooks.attempts using brin (attempted_at) with (pages_per_range = 16);
comment on table webhooks.attempts is 'One row per request made; a delivered one settles its delivery';
comment on column webhooks.attempts.attempted_at is 'Start of the request';
comment on column webhooks.attempts.error is 'A constant name, or name: detail';
comment on column webhooks.attempts.revision is 'The revision of the endpoint that the request was made with';
comment on column webhooks.attempts.cause is
  'Why it was made: live, retry, replay (the first after one), test, probe (of an open breaker), or recovery: the '
  'first, but an earlier run of the daemon may have made one';

comment on column webhooks.attempts.evidence is
  'Of a failed attempt: the address, how far it came and when, and headers of its answer. Null if no connection was '
  'begun';

create table webhooks.dead (
  event_id    bigint not null,
  endpoint_id bigint not null,
  site_id     text collate "C" not null,
  reason      text not null,
  attempts    smallint not null,
  since       timestamptz not null default now(),
  primary key (event_id, endpoint_id)
) partition by range (event_id);
create index dead_of_endpoint on webhooks.dead (endpoint_id, event_id);
create index dead_of_platform on webhooks.dead (since) where reason in ('too_large', 'invalid');
comment on table webhooks.dead is 'Deliveries that were given up, with the reason';

-- Rows come and go: they leave room for updates in place, and vacuum comes early. The daemon holds and releases them in
-- pages, so that an endpoint with a million rows can be switched off and on.

create table webhooks.backlog (
  event_id        bigint not null,
  endpoint_id     bigint not null,
  site_id         text collate "C" not null,
  state           text not null constraint "state is a known one" check (state in ('waiting', 'parked', 'held')),
  reason          text not null,
  attempts        smallint not null default 0,
  next_attempt_at timestamptz,
  since           timestamptz not null default now(),
  released_at     timestamptz,
  attempts_before smallint not null default 0,
  line            text,
  cause           text not null default 'live',
  primary key (event_id, endpoint_id),
  constraint "a waiting delivery has a time" check (state <> 'waiting' or next_attempt_at is not null)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index backlog_due on webhooks.backlog (next_attempt_at, event_id, endpoint_id) where state = 'waiting';
create index backlog_of_endpoint on webhooks.backlog (endpoint_id, event_id);
create index backlog_aside on webhooks.backlog (endpoint_id, event_id) where state <> 'waiting' and reason <> 'quarantined';
create index backlog_held on webhooks.backlog (since) where state = 'held';
create index backlog_in_line on webhooks.backlog (endpoint_id, line, event_id) where line is not null;
comment on table webhooks.backlog is
  'Deliveries that did not go out at once: to be retried, parked, or held for a disabled endpoint';
comment on column webhooks.backlog.since is 'Since when it is waiting, parked or held';
comment on column webhooks.backlog.released_at is 'When it last left parked or held: its age counts from here';
comment on column webhooks.backlog.attempts_before is
  'Of the attempts, those before the latest replay: the schedule counts failures from there';
comment on column webhooks.backlog.cause is 'Why the next attempt will be made, unless it is a test or a probe';
comment on column webhooks.backlog.line is
  'Of an ordered endpoint: the line of the delivery, its ordering_key (empty if it has none). Null if none was '
  'given yet';

-- lz4 is much faster than the default, where the server has it.
do $$
begin
  if exists (select 1 from pg_settings where name = 'default_toast_compression' and 'lz4' = any (enumvals)) then
    alter table webhooks.events alter column payload set compression lz4;
    alter table webhooks.attempts alter column response set compression lz4;
    alter table webhooks.attempts alter column evidence set compression lz4;
  end if;
end $$;

-- The rows of webhooks.site_deliveries. Its parameters have some of these names, which the columns of `returns table`
-- could not have.
create type webhooks.site_delivery as (
  cursor          text,
  event_id        bigint,
  webhook_id      text,
  endpoint_id     bigint,
  type            text,
  subject         text,
  state           text,
  detail          text,
  attempts        int,
  created_at      timestamptz,
  last_attempt_at timestamptz,
  last_status     smallint,
  last_error      text,
  next_attempt_at timestamptz
);
comment on type webhooks.site_delivery is 'A row of the log of a site, as webhooks.site_deliveries returns it';

-- Counts of attempts by hour. Nothing changes a row, and all rows of an hour are written together, so that the table
-- and its key grow at their ends. There may be as many rows as attempts, and they are kept for longer.

create table webhooks.endpoint_hours (
  hour        timestamptz not null,
  endpoint_id bigint not null,
  attempts    int not null,
  delivered   int not null,
  slots       smallint[] not null,
  counts      int[] not null,
  site_id     text collate "C" not null,
  primary key (hour, endpoint_id, site_id)
) with (autovacuum_freeze_min_age = 0, autovacuum_vacuum_insert_scale_factor = 0.02,
  autovacuum_vacuum_scale_factor = 0.02);
comment on table webhooks.endpoint_hours is
  'Attempts of finished hours, counted by the daemon: one row for each endpoint and hour with attempts';
comment on column webhooks.endpoint_hours.slots is
  'Slots of durations, ten in each power of ten: slot n is from 10^(n/10) to 10^((n+1)/10) ms, slot 0 from 0';
comment on column webhooks.endpoint_hours.counts is 'How many attempts are in each of the slots';

-- A row of webhooks.endpoint_activity, which has a parameter of the same name as a column.
create type webhooks.activity as (
  bucket    timestamptz,
  attempts  bigint,
  delivered bigint,
  failed    bigint,
  p50_ms    real,
  p95_ms    real
);
comment on type webhooks.activity is 'An hour or a day of an endpoint, as webhooks.endpoint_activity returns it';
