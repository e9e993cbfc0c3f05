-- Drops a table of the archive: {table} and {day} are written into the text.
drop table webhooks_archive.{table}_{day}
