"""Reads the log: what is new, page by page, and what sites without room have left there."""
