"""Encrypts secrets at rest."""
