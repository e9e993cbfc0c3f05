"""Keeps the log's days in order: made ahead, and removed when they are old; encrypts and erases what should be."""
