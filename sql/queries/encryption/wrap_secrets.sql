-- Replaces secrets by their encrypted form, if they are still the ones that were read. $1 bigint[]: endpoint ids; then
-- text[] each: secrets read, secrets, previous ones read, previous ones, kinds, auths read, auths. Returns how many
-- endpoints had not changed meanwhile.
select webhooks.wrap_secrets($1, $2, $3, $4, $5, $6, $7, $8)
