-- Where the daemon runs, and how its earlier runs ended. The daemon decides by it whether this is the same database or a
-- copy, and which delivery crashes it.
-- min_daemon: 0.1.0

create table webhooks.home (
  host         text not null,
  server       text not null,
  unclean_ends int not null default 0,
  suspects     jsonb not null default '[]',
  seen_at      timestamptz not null default now(),
  run          text,
  name         text not null default '',
  started_at   timestamptz,
  beside       text,
  rival        text,
  primary key (host, server)
);
comment on table webhooks.home is
  'Where instances own the shards or stand by. The daemon decides by it whether this is the same database or a copy';
comment on column webhooks.home.unclean_ends is 'Ends without a word in a row';
comment on column webhooks.home.suspects is 'Deliveries that were in flight at such an end, and at how many';
comment on column webhooks.home.run is 'The run that lives here, or ended without a word; null after an orderly end';
comment on column webhooks.home.name is 'The setting database.home of the instance; empty if it is not set';
comment on column webhooks.home.started_at is
  'When the server started that the instance last saw: no copy of the database starts at the same microsecond';
comment on column webhooks.home.beside is
  'The run that owned the shards while this instance stood by; null if the instance has owned them itself';
comment on column webhooks.home.rival is
  'Where the same database still ran when an instance came here: this may be the copy. Null if it is home';
