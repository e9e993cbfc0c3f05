-- Records a function, view or trigger as it was applied, in its own transaction. $1 text: name; $2 text: checksum of
-- its file; $3 text: this version of pghookd.
insert into webhooks.functions (name, sha256, applied_by) values ($1, $2, $3)
on conflict (name) do update
set sha256 = excluded.sha256, applied_by = excluded.applied_by, applied_at = excluded.applied_at
