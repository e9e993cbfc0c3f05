-- An event of the demo. $1 text: site; $2 text: type; $3 json: payload; $4 text: subject. Returns its event_id.
insert into webhooks.events (site_id, type, payload, subject) values ($1, $2, $3, $4)
returning event_id
