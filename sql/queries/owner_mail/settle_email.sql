-- Writes the result of a mail. $1 bigint: email_id; $2 text: its state, `queued` if it is tried again at the time that
-- its claim has set; $3 text: why it was not sent; $4 timestamptz: when it was.
update webhooks.emails set state = $2, error = $3, sent_at = $4,
  next_attempt_at = case when $2 = 'queued' then next_attempt_at end
where email_id = $1 and state = 'queued'
