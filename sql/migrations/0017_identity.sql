-- Standbys are known before they own: what proves the database's identity is kept in `home`.
-- min_daemon: 0.1.0

alter table webhooks.home add column name text not null default '';
alter table webhooks.home add column started_at timestamptz;
alter table webhooks.home add column beside text;
alter table webhooks.home add column rival text;
comment on table webhooks.home is 'Where instances own the shards or stand by. The daemon decides by it whether this is the same database or a copy';
comment on column webhooks.home.name is 'The setting database.home of the instance; empty if it is not set';
comment on column webhooks.home.started_at is 'When the server started that the instance last saw: no copy of the database starts at the same microsecond';
comment on column webhooks.home.beside is 'The run that owned the shards while this instance stood by; null if the instance has owned them itself';
comment on column webhooks.home.rival is 'Where the same database still ran when an instance came here: this may be the copy. Null if it is home';
