-- Marks a mail that has not gone out as superseded by the next one; not if it may have been sent. $1 bigint: email_id.
update webhooks.emails set state = 'superseded', next_attempt_at = null
where email_id = $1 and state = 'queued' and (attempts = 0 or error is not null)
returning email_id
