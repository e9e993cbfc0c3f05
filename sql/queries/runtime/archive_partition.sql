-- Moves the detached table of a day to the archive: {table} and {day} are written into the text.
alter table webhooks.{table}_{day} set schema webhooks_archive
