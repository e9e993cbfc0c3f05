"""Detects failing endpoints, notifies their owners, and disables endpoints that stay broken."""
