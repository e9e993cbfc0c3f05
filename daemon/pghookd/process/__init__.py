"""Connects the process to its surroundings: logs, signals, systemd, the host."""
