-- The schema, and the records of how it was made.
-- min_daemon: 0.1.0

create schema webhooks;
comment on schema webhooks is 'pghookd: webhook events, endpoints and deliveries (made by pghookd migrate)';

create schema if not exists webhooks_archive;  -- one from an earlier installation stays
comment on schema webhooks_archive is
  'pghookd: days that retention has detached (retention.action = detach), for pg_dump; dropped by hand';

create table webhooks.migrations (
  version    int primary key,
  name       text not null,
  sha256     text not null,
  min_daemon text,
  applied_at timestamptz not null default now()
);
comment on table webhooks.migrations is
  'Which migrations this schema has, with the checksum of each file as it was applied';

create table webhooks.functions (
  name       text primary key,
  sha256     text not null,
  applied_by text not null,
  applied_at timestamptz not null default now()
);
comment on table webhooks.functions is
  'Which functions, views and triggers this schema has, with the checksum of each file as it was applied';
comment on column webhooks.functions.applied_by is 'The version of pghookd; earlier versions leave the function alone';
