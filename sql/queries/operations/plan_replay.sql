-- Counts the deliveries that a replay would send. $1 bigint[]: event ids; $2 bigint: endpoint id; $3 text: site; $4
-- text[]: types; $5 text, $6 text: since and until, each a time (of UTC if it names no zone) or how long ago, such as
-- 2h; $7 text[]: states; $8 float8: deliveries a second. Null is any, in $8 the usual rate.
select total, endpoints, rate_per_s
from webhooks.plan_replay($1::bigint[], $2::bigint, $3::text, $4::text[],
  case when $5::text ~ '^[0-9]+ *[smhd]$' then now() - $5::text::interval else $5::text::timestamptz end,
  case when $6::text ~ '^[0-9]+ *[smhd]$' then now() - $6::text::interval else $6::text::timestamptz end,
  $7::text[], $8::float8::real)
