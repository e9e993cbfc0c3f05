-- Stores the name that the operator gave the database. $1 text: database.home, empty if it is not set. Writes only a
-- name that changed; the table holds a few dozen rows.
update webhooks.home set name = $1 where name <> $1
