"""A session that ends before one of its statements, as if the daemon had been killed there."""

from __future__ import annotations


class DyingSession:
    """Runs so many statements of another session, then ends it.

    Attributes:
        died: True once a statement found the session ended.
    """

    def __init__(self, session, statements):
        self._session, self._left = session, statements
        self.died = False

    def __getattr__(self, name):
        return getattr(self._session, name)

    async def execute(self, sql, *args):
        self._count()
        return await self._session.execute(sql, *args)

    async def fetch(self, sql, *args):
        self._count()
        return await self._session.fetch(sql, *args)

    async def fetchval(self, sql, *args):
        self._count()
        return await self._session.fetchval(sql, *args)

    def _count(self):
        self._left -= 1
        if self._left < 0 and not self.died:
            self.died = True
            self._session.terminate()
