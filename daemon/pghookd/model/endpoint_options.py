"""What an endpoint asks for beyond the platform's ways, as one value that is None for those that ask for nothing.

The database hands it over as one flat JSON text (column `options` of read_endpoints); read once for each text, and the
same text is the same object, so that comparing an endpoint with its last reading costs nothing. Nothing is judged
here: what cannot be used must not stop the log, only the deliveries to that endpoint (webhook/prepared).

Never here: time, SQL, what the options lead to.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Final

import orjson

RATE_MIN: Final = 0.001  # a second, as the constraint of the column has it; it may have been dropped
RATE_MAX: Final = 10_000.0
STATUSES_LENGTH_MAX: Final = 200  # characters
_STATUSES: Final = re.compile(r"(2[0-9]{2})(?:-(2[0-9]{2}))?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class EndpointOptions:
    """The columns of `endpoints` that are seldom set. None: as the settings say.

    Attributes:
        retry_schedule: as the setting `retry.schedule` is written.
        headers: the JSON text of the endpoint's own header lines.
        success_statuses: such as `200,201,204` or `200-204`.
        profile: a preset of webhook/profile, `plain`, or `custom`; None: setting `delivery.profile`.
        profile_spec: the JSON text of a custom profile.
        previous_secret: signs beside the secret during a rotation.
        previous_until_s: Unix seconds at which that ends.
        filter: the text of a jsonpath; events of which it is false are left out.
        rate_per_s: how many requests may start in a second.
        ordered: deliver one by one per ordering_key.
        auth: how requests identify themselves (webhook/auth): the JSON text, or that encrypted.
    """

    retry_schedule: str | None = None
    headers: str | None = dataclasses.field(default=None, repr=False)  # may carry a token
    success_statuses: str | None = None
    profile: str | None = None
    profile_spec: str | None = None
    previous_secret: str | None = dataclasses.field(default=None, repr=False)
    previous_until_s: float = 0.0
    filter: str | None = None
    rate_per_s: float | None = None
    ordered: bool = False
    auth: str | None = dataclasses.field(default=None, repr=False)

    @property
    def rate(self) -> float | None:
        """The rate where there is one that can be kept; NaN and infinity arrive as texts."""
        asked = self.rate_per_s
        return asked if isinstance(asked, int | float) and RATE_MIN <= asked <= RATE_MAX else None


@functools.lru_cache(maxsize=10_000)
def read(text: str) -> EndpointOptions:
    """Make the options of the text of the column `options`."""
    return EndpointOptions(**orjson.loads(text))


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Read `{"name": "value", ...}`; whether they may be sent is for webhook/headers.

    Raises:
        ValueError: it is no object of texts.
    """
    found = orjson.loads(text)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("headers are not an object of texts")
    return tuple(found.items())


def parse_statuses(text: str) -> frozenset[int]:
    """Read `200,201,204` or `200-204`: the 2xx that count as success.

    Raises:
        ValueError: a part is no 2xx nor a range of them that goes up, or the text is over 200 characters.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _STATUSES.fullmatch(part.strip())
        if match is None or (match[2] or match[1]) < match[1] or len(text) > STATUSES_LENGTH_MAX:
            raise ValueError("success_statuses are 2xx and ranges of them, as in 200,202-204")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)
