"""Outcomes become rows, in batches."""
