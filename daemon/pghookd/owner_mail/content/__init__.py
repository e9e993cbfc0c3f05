"""The content of a letter in one language: from a digest to a statement, before any markup."""
