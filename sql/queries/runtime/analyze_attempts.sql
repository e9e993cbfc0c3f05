-- Analyzes `attempts` with its partitions: autovacuum analyzes these, and never the parent that plans are made by.
analyze webhooks.attempts
