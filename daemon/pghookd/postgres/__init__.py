"""Opens Postgres sessions and migrates the schema."""
