-- Takes one mail to be sent, unless it was superseded or taken by somebody else meanwhile. Until its end is written it
-- counts as perhaps sent: it has attempts and no error. $1 bigint: email_id; $2 smallint: its attempts as read;
-- $3 timestamptz: when it is due again should its end never be written; $4 text: its Message-ID; $5 text: its subject.
-- Both stay what they were the first time.
update webhooks.emails set attempts = least($2::smallint + 1, 32767), error = null, next_attempt_at = $3,
  message_id = coalesce(message_id, $4), subject = coalesce(subject, $5)
where email_id = $1 and state = 'queued' and attempts = $2
returning message_id
