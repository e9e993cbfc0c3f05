"""The life of a delivery, for tests that watch one change."""

from __future__ import annotations

from pghookd.model.delivery_states import LIFE

PAIRS = {(move.to.value, move.reason and move.reason.value) for move in LIFE}  # a state and its reason


def is_move(before, after, reason):
    """Return True if a delivery may come from the state `before` (None: no row) into `after` with this reason."""
    return any((move.to, move.reason) == (after, reason) and before in move.before for move in LIFE)
