-- Records a migration, in its own transaction. $1 int: version; $2 text: name; $3 text: checksum of its file; $4 text:
-- the least version of pghookd that may use the schema from now on (null: any).
insert into webhooks.migrations (version, name, sha256, min_daemon) values ($1, $2, $3, $4)
