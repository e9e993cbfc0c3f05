-- Records attempts, a batch at a time. INSERT and not COPY: no timeout ends a client that was stopped in mid-COPY.
-- Idempotent: one row per event, endpoint and attempt. The numbers come as array literals, which cost the daemon a
-- third of the driver's own arrays. $1 text: event ids; $2 text: endpoint ids; $3 text: attempts; $4 text: microseconds
-- since 1970; $5 text: milliseconds; $6 text: statuses; $7 text: revisions of the endpoints; then outcomes, errors,
-- responses, site ids, causes, evidence as JSON texts. A shorter column is filled up with nulls: successes have no
-- evidence.
insert into webhooks.attempts (event_id, endpoint_id, attempt, attempted_at, duration_ms, status, revision, outcome,
  error, response, site_id, cause, evidence)
select event_id, endpoint_id, attempt, timestamptz 'epoch' + attempted_at_us * interval '1 microsecond', duration_ms, status,
  revision, outcome, error, response, site_id, cause, evidence::jsonb
from unnest($1::text::bigint[], $2::text::bigint[], $3::text::smallint[], $4::text::bigint[], $5::text::real[], $6::text::smallint[],
  $7::text::int[], $8::text[], $9::text[], $10::bytea[], $11::text[], $12::text[], $13::text[])
  as u(event_id, endpoint_id, attempt, attempted_at_us, duration_ms, status, revision, outcome, error, response,
    site_id, cause, evidence)
on conflict do nothing
