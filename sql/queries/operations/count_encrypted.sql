-- Counts the endpoints with a secret or auth in plain text, and those with an encrypted one.
select count(*) filter (where left(secret, 7) <> 'enc:v1:' or left(previous_secret, 7) <> 'enc:v1:'
    or jsonb_typeof(auth) = 'object') as plain,
  count(*) filter (where left(secret, 7) = 'enc:v1:' or jsonb_typeof(auth) = 'string') as sealed
from webhooks.endpoints where num_nonnulls(secret, previous_secret, auth) > 0
