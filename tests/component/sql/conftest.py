"""A database with the roles, and logins that are members of them."""

from __future__ import annotations

import itertools
import os

import pytest

from pghookd.postgres import migrate
from support.logins import as_user

_numbers = itertools.count(1)


@pytest.fixture
async def with_roles(database):
    await migrate.migrate(database, roles=True)
    return database


@pytest.fixture
async def login(admin, with_roles, connect):
    """Return `await login(role)`: the URL of a new login role that is a member of it."""
    made = []

    async def make(role, *options):
        name = f"pghookd_test_{os.getpid()}_login_{next(_numbers)}"
        made.append(name)
        await admin.execute(f"create role {name} login password 'pw-{name}' {' '.join(options)}")
        if role:
            await admin.execute(f"grant {role} to {name}")
        return as_user(with_roles, name)

    yield make
    owner = await connect(with_roles)
    for name in made:
        await owner.execute(f"drop owned by {name}")
        await admin.execute(f"drop role {name}")
