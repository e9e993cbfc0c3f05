"""Decides which deliveries may start, and when."""
