"""Queries and commands of operators."""
