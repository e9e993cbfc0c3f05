-- What was attempted, a batch at a time. INSERT and not COPY: a client stopped in mid-COPY is ended by no timeout.
-- Idempotent: one row per event, endpoint and attempt.
insert into webhooks.attempts (event_id, endpoint_id, attempt, attempted_at, duration_ms, outcome, status, error, response, site_id)
select * from unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::timestamptz[], $5::real[], $6::text[], $7::smallint[], $8::text[],
  $9::bytea[], $10::text[])
on conflict do nothing
