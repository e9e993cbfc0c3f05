-- Makes the sites of the demo that do not exist yet. $1 text[]: site ids; $2 text[]: names.
insert into webhooks.sites (site_id, name, url, owner_email)
select id, name, 'https://' || id || '.example', 'owner@' || id || '.example'
from unnest($1::text[], $2::text[]) as made (id, name)
on conflict (site_id) do update set owner_email = excluded.owner_email
