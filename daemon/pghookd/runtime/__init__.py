"""Runs one process, epoch by epoch."""
