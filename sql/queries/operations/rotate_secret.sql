-- Gives an endpoint a new secret and returns it. $1 bigint: endpoint id; $2 float8: seconds for which the previous one
-- signs too.
select webhooks.rotate_secret($1, make_interval(secs => $2::float8))
