"""Rows of `backlog` that come back into memory."""
