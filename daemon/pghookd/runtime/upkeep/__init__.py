"""Keeps the log's days in order: made ahead, and removed when they are old. Encrypts secrets, and erases data."""
