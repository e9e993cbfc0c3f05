-- Encrypted secrets in the place of those that were seen. $1 bigint[]: endpoint ids; then text[] each: secrets seen, secrets,
-- previous ones seen, previous ones, kinds, auths seen, auths. Returns how many endpoints had not changed meanwhile.
select webhooks.wrap_secrets($1, $2, $3, $4, $5, $6, $7, $8)
