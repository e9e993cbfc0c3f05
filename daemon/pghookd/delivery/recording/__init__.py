"""Writes outcomes as rows, in batches."""
