"""This process: logs, signals, systemd, the host."""
