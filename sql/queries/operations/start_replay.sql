-- Starts a replay, and returns the number of its deliveries. $1 bigint[]: event ids; $2 bigint: endpoint id; $3 text:
-- site; $4 text[]: types; $5 text, $6 text: since and until as in plan_replay; $7 text[]: states; $8 float8: deliveries
-- a second.
select p.replay_id, p.deliveries
from webhooks.replay($1::bigint[], $2::bigint, $3::text, $4::text[],
  case when $5::text ~ '^[0-9]+ *[smhd]$' then now() - $5::text::interval else $5::text::timestamptz end,
  case when $6::text ~ '^[0-9]+ *[smhd]$' then now() - $6::text::interval else $6::text::timestamptz end,
  $7::text[], $8::float8::real, false) p
