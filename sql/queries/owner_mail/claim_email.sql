-- Claims one mail to be sent, unless it was superseded or claimed by another mailer meanwhile. Until its result is
-- written it counts as perhaps sent: it has attempts and no error. $1 bigint: email_id; $2 smallint: its attempts as
-- read; $3 timestamptz: when it is due again if its result is never written; $4 text: its Message-ID; $5 text: its
-- subject. Both stay as they were the first time.
update webhooks.emails set attempts = least($2::smallint + 1, 32767), error = null, next_attempt_at = $3,
  message_id = coalesce(message_id, $4), subject = coalesce(subject, $5)
where email_id = $1 and state = 'queued' and attempts = $2
returning message_id
