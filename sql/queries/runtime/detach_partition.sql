-- Detaches a table's partition of a day: {table} and {day} are written into the text. Outside a transaction. It first
-- marks the partition, then waits for transactions that may use it, and locks nothing that a producer needs.
alter table webhooks.{table} detach partition webhooks.{table}_{day} concurrently
