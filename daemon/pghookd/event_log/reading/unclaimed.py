"""Counts the events that nobody takes, in bounded memory: by site if it has no endpoint, by type if none takes it.

Never here: SQL, a clock, which sites and types are unknown (sql/queries/runtime/note_unclaimed.sql).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

KEYS_MAX: Final = 10_000  # sites, and types, counted between two writes; about 100 bytes each


class Unclaimed:
    """The events that nobody took since they were last written down.

    Attributes:
        sites: number of events by site, of sites without endpoints.
        types: number of events by type, of types that no endpoint of the event's site takes.
    """

    def __init__(self) -> None:
        self.sites: Counter[str] = Counter()
        self.types: Counter[str] = Counter()

    def of_sites(self, site_ids: Iterable[str]) -> None:
        """Count an event of each site; a site may be given several times."""
        for site_id in site_ids:
            if site_id in self.sites or len(self.sites) < KEYS_MAX:
                self.sites[site_id] += 1

    def of_type(self, event_type: str) -> None:
        """Count an event of a type."""
        if event_type in self.types or len(self.types) < KEYS_MAX:
            self.types[event_type] += 1

    def take(self) -> list[tuple[str, str, int]]:
        """Return the counts, each as `site` or `type`, name and number, and start from zero."""
        taken = [("site", name, count) for name, count in self.sites.items()]
        taken += [("type", name, count) for name, count in self.types.items()]
        self.sites.clear()
        self.types.clear()
        return taken
