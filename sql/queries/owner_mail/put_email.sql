-- Puts a mail into the outbox; does nothing if it is there already. $1 text: owner; $2 text: kind; $3 timestamptz:
-- beginning of its window; $4 text: digest, JSON; $5 text: the incidents before it, JSON; $6 text: queued or
-- suppressed; $7 timestamptz: now; $8 text: its mailbox, in the one spelling that limits are counted by; $9 text: the
-- mailbox's domain.
insert into webhooks.emails
  (owner_email, kind, window_start, digest, before, state, next_attempt_at, created_at, mailbox, mail_domain)
values ($1, $2, $3, $4::text::jsonb, $5::text::jsonb, $6, case when $6 = 'queued' then $7::timestamptz end, $7, $8, $9)
on conflict do nothing
returning email_id
