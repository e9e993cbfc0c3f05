-- Returns the token of an owner's unsubscribe link, and makes one if it does not exist. $1 text: owner, in lower case.
insert into webhooks.owners as o (owner_email, unsubscribe_token)
values ($1, encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex'))
on conflict (owner_email) do update set unsubscribe_token = coalesce(o.unsubscribe_token, excluded.unsubscribe_token)
returning unsubscribe_token
