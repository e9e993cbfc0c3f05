-- Endpoints that fail, and the emails that their owners get about it.
-- min_daemon: 0.1.0

-- An incident is one endpoint's trouble, from its first failure to its recovery. The recorder writes the columns of
-- failures and successes with the attempts themselves, and the endpoint monitor the others.

create table webhooks.incidents (
  endpoint_id      bigint primary key references webhooks.endpoints on delete cascade,
  state            text not null constraint "state is a known one"
                   check (state in ('healthy', 'shaky', 'failing', 'partly_failing', 'flapping', 'disabled', 'blocked')),
  first_failure_at timestamptz not null,
  last_failure_at  timestamptz not null,
  last_success_at  timestamptz,
  recovering_at    timestamptz,
  window_at        timestamptz,
  successes        bigint not null default 0,
  last_outcome     text not null,
  last_status      smallint,
  last_error       text,
  last_event_id    bigint not null,
  last_attempt     smallint not null,
  marks            jsonb not null default '{}',
  disable_at       timestamptz,
  next_look_at     timestamptz not null
);
comment on table webhooks.incidents is 'Endpoints in trouble, and what their owners know of it; the daemon''s own';
comment on column webhooks.incidents.recovering_at is 'The first 2xx after the latest failure';
comment on column webhooks.incidents.window_at is 'The first failure that no window has closed over';
comment on column webhooks.incidents.successes is 'Deliveries since it began';
comment on column webhooks.incidents.disable_at is 'When the endpoint will be switched off if nothing changes';
comment on column webhooks.incidents.next_look_at is 'The earliest time at which a mail or another action may be due';

create table webhooks.emails (
  email_id        bigint generated always as identity primary key,
  owner_email     text not null,
  kind            text not null,
  window_start    timestamptz not null,
  message_id      text,
  subject         text,
  digest          jsonb not null,
  state           text not null default 'queued' constraint "state is a known one"
                  check (state in ('queued', 'sent', 'superseded', 'suppressed', 'failed')),
  attempts        smallint not null default 0,
  next_attempt_at timestamptz,
  created_at      timestamptz not null default now(),
  sent_at         timestamptz,
  error           text,
  before          jsonb not null default '{}',
  mailbox         text not null default '',
  mail_domain     text not null default '',
  unique (owner_email, kind, window_start)
);
create index emails_queued on webhooks.emails (next_attempt_at) where state = 'queued';
create index emails_of_owner on webhooks.emails (owner_email, created_at);
create index emails_of_mailbox on webhooks.emails (mailbox, created_at);
comment on table webhooks.emails is 'Emails to owners: content, recipient, and whether each was sent';
comment on column webhooks.emails.digest is 'The content of the mail, as values; rendered when it is sent';
comment on column webhooks.emails.before is
  'The incidents as they were before this mail was made: it is folded into the next one if it never goes out';
comment on column webhooks.emails.mailbox is
  'One spelling for all spellings of the address: what the limits on emails are counted by';
comment on column webhooks.emails.mail_domain is 'The registrable domain of the address: the mailer''s turns go by it';
