-- Limits on emails: by mailbox, whatever its spelling, and by domain. Endpoints that the platform's own policy blocks.
-- min_daemon: 0.1.0

alter table webhooks.emails
  add column mailbox text not null default '',
  add column mail_domain text not null default '';
update webhooks.emails set mailbox = lower(owner_email), mail_domain = split_part(lower(owner_email), '@', 2)
where state = 'queued' or created_at > now() - interval '1 day';
create index emails_of_mailbox on webhooks.emails (mailbox, created_at);
comment on column webhooks.emails.mailbox is 'One spelling for all spellings of the address: what the limits on emails are counted by';
comment on column webhooks.emails.mail_domain is 'The registrable domain of the address: the mailer''s turns go by it';
