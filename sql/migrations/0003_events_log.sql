-- The log of events, and how far the daemon has read it.
-- min_daemon: 0.1.0

-- xid comes first: defaults are evaluated in column order, so that the transaction has its xid before the id is drawn. The
-- reader's floor depends on this, and on the identity's cache of 1. A failed CHECK aborts the producer's transaction, so
-- these are few; there are no foreign keys, and no trigger but the bell.

create table webhooks.events (
  xid            xid8 not null default pg_current_xact_id(),
  event_id       bigint generated always as identity (cache 1),
  site_id        text collate "C" not null
                 constraint "site_id is 1 to 200 characters" check (length(site_id) between 1 and 200),
  type           text collate "C" not null
                 constraint "type is 1 to 128 characters" check (length(type) between 1 and 128),
  payload        json not null,
  created_at     timestamptz not null default now()
                 constraint "created_at is finite" check (isfinite(created_at)),
  subject        text constraint "subject is 1 to 500 characters" check (length(subject) between 1 and 500),
  ordering_key   text constraint "ordering_key is 1 to 500 characters" check (length(ordering_key) between 1 and 500),
  dedupe_key     text constraint "dedupe_key is 1 to 500 characters" check (length(dedupe_key) between 1 and 500),
  supersede_key  text constraint "supersede_key is 1 to 500 characters" check (length(supersede_key) between 1 and 500),
  traceparent    text constraint "traceparent is 1 to 100 characters" check (length(traceparent) between 1 and 100),
  deliver_after  timestamptz,
  deliver_before timestamptz,
  endpoint_id    bigint,
  primary key (event_id)
) partition by range (event_id);
create index events_by_xid on webhooks.events (xid);
-- An index row has at most 2,704 bytes, and an INSERT that made a longer one would fail. A site_id has up to 800 bytes, a
-- text of 500 characters up to 2,000. So a subject is found by its beginning, a key by its SHA-256: that is short, and
-- nobody can make keys that share it. Within a key events are in the order of their ids.
create index events_by_subject on webhooks.events (site_id, left(subject, 400)) where subject is not null;
create index events_by_dedupe_key on webhooks.events (site_id, sha256(decode(replace(dedupe_key, '\', '\\'), 'escape')), event_id)
  where dedupe_key is not null;
create index events_by_supersede_key on webhooks.events (site_id, sha256(decode(replace(supersede_key, '\', '\\'), 'escape')), event_id)
  where supersede_key is not null;
comment on table webhooks.events is
  'The log. Producers INSERT site_id, type, payload; rows never change, but that payloads are erased where '
  'retention.payload_days says so';
comment on column webhooks.events.event_id is 'Day-coded: (days since 2020-01-01) x 2^32 + a running number';
comment on column webhooks.events.subject is 'The subject of the event, such as order/1234';
comment on column webhooks.events.ordering_key is
  'Endpoints that are ordered get the events of a site with the same key one by one, in order. enable_endpoint(.., '
  'latest_per_key) keeps the newest of each';
comment on column webhooks.events.dedupe_key is
  'Of the events of a site with the same key only the first is delivered, whether or not its delivery succeeds; the '
  'others are stored, their deliveries dead, duplicate. A key is free again when no event has had it for seven days';
comment on column webhooks.events.supersede_key is
  'A newer event (by event_id) of the same site and key replaces this one at each endpoint that takes both, where it '
  'is undelivered: dead, superseded. A newer event that cannot be delivered replaces nothing, nor does one whose '
  'deliver_after has not come';
comment on column webhooks.events.traceparent is
  'Passed on as the header of that name, where it is one (W3C Trace Context)';
comment on column webhooks.events.deliver_after is 'Not delivered before; its age counts from then';
comment on column webhooks.events.deliver_before is 'No attempt starts from then on: dead, expired';
comment on column webhooks.events.endpoint_id is 'Only to this endpoint; not for producers';

-- Partitions: one for each day. They are made apart and then attached, so that no producer ever waits (attach_day).

create table webhooks.partitions (
  day         int primary key,
  attached_at timestamptz not null default now(),
  holders     text[] not null,
  leaving_at  timestamptz
);
comment on column webhooks.partitions.leaving_at is
  'Since when retention removes the day; no replay reaches it any more';
comment on table webhooks.partitions is
  'Days whose partitions are attached, and the transactions that were open then and may not know them; the daemon''s '
  'own';

-- Updated every second or two: each page is mostly empty, so that a row is updated in place.

create table webhooks.shards (
  shard             smallint primary key,
  snapshot          pg_snapshot,
  upto              pg_snapshot,
  last_event_id     bigint not null default 0,
  floor             bigint not null default 0,
  front             bigint not null default 0,
  mark_event_id     bigint,
  mark_xid          xid8,
  system_identifier bigint,
  database_oid      oid,
  timeline          text,
  max_event_id      bigint,
  stored_at         timestamptz
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table webhooks.shards is
  'How far each shard of the log is settled, and in which database that was true; the daemon''s own';
comment on column webhooks.shards.upto is
  'Set in the middle of a difference: events visible here, up to last_event_id, are settled as well';
comment on column webhooks.shards.floor is 'No event that is not visible in snapshot has an id at or below this';
comment on column webhooks.shards.front is
  'No event whose xid is at or above the xmax of snapshot has an id at or below this';

create table webhooks.unclaimed_events (
  day      date not null,
  what     text not null constraint "what is site or type" check (what in ('site', 'type')),
  name     text not null,
  events   bigint not null,
  first_at timestamptz not null default now(),
  last_at  timestamptz not null default now(),
  primary key (day, what, name)
);
comment on table webhooks.unclaimed_events is
  'Events that nobody took, since their site or type is not known, counted by day; see the view unclaimed. The '
  'daemon''s own';
