"""Sessions and the schema."""
