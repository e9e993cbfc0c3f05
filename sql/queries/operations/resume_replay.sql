-- Resumes a paused replay. $1 bigint: its id.
select webhooks.resume_replay($1)
