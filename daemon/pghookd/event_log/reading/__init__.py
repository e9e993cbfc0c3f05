"""Reads the log: new events page by page, and deferred events once their sites have room."""
