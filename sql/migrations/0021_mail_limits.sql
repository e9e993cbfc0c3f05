-- Limits on emails: by mailbox, whatever its spelling, and by domain. Endpoints that the platform's own policy blocks.
-- min_daemon: 0.1.0

alter table webhooks.emails
  add column mailbox text not null default '',
  add column mail_domain text not null default '';
update webhooks.emails set mailbox = lower(owner_email), mail_domain = split_part(lower(owner_email), '@', 2)
where state = 'queued' or created_at > now() - interval '1 day';
create index emails_of_mailbox on webhooks.emails (mailbox, created_at);
create index dead_of_platform on webhooks.dead (since) where reason in ('too_large', 'invalid');
comment on column webhooks.emails.mailbox is 'One spelling for all spellings of the address: what the limits on emails are counted by';
comment on column webhooks.emails.mail_domain is 'The registrable domain of the address: the mailer''s turns go by it';

-- What the platform alone can mend is no endpoint's trouble: not an event that cannot be sent, nor a destination that the
-- platform's own policy blocks (state `blocked`).
delete from webhooks.incidents where last_outcome = 'unsent' and last_error in ('too_large', 'invalid') and state = 'shaky';
alter table webhooks.incidents
  drop constraint "state is a known one",
  add constraint "state is a known one"
    check (state in ('healthy', 'shaky', 'failing', 'partly_failing', 'flapping', 'disabled', 'blocked'));
