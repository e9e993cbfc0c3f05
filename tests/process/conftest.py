"""Shared by the stories, beside daemons and receivers as processes."""

from __future__ import annotations

import pytest

from support.daemon import NotifySocket
from support.fixtures import db, receiver_process, start
from support.shop import Shop

__all__ = ["db", "receiver_process", "start"]


@pytest.fixture
def notify_socket(tmp_path):
    """Return a socket that stands for systemd's."""
    made = NotifySocket(tmp_path)
    yield made
    made.close()


@pytest.fixture
def shop(db, receiver, until):
    """Return a site whose endpoints are at `receiver`."""
    return Shop(db, receiver, until)


@pytest.fixture
def reaches(shop):
    """Return `await reaches(event_id, endpoint_id, state)`: waits until a delivery of `shop` is in the state."""
    return shop.reaches
