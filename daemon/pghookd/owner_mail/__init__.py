"""Mails to owners and the operator: content, rendering and sending."""
