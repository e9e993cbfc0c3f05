-- True if the payload of event e travels with its row: at most 16 KB as text. Its stored size decides first, since a
-- payload is decompressed to measure its text.
(pg_column_compression(e.payload) is null and pg_column_size(e.payload) <= 16384
  or octet_length(e.payload::text) <= 16384)
