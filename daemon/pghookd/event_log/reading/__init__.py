"""Reads the log: new events, page by page, and the events that sites without room have left there."""
