-- Makes a secret as Standard Webhooks writes them.
create or replace function webhooks.new_secret() returns text
language sql volatile set search_path = pg_catalog, webhooks, pg_temp as $$
  -- three random UUIDs carry 366 random bits into the 256 of the digest
  select 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64')
$$;
