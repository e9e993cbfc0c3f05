"""The rarely used options of an endpoint, as one value; None for an endpoint without any.

The database returns them as one flat JSON text (column `options` of read_endpoints). Each text is parsed once, and
equal texts give the same object, so that comparing an endpoint with its last reading costs nothing. The options are
not validated here: an invalid one must only stop the deliveries to its endpoint (webhook/prepared), not the log.

Never here: time, SQL, the effect of an option.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Final

import orjson

RATE_MIN: Final = 0.001  # per second, like the column's constraint, which may have been dropped
RATE_MAX: Final = 10_000.0
STATUSES_LENGTH_MAX: Final = 200  # characters
_STATUSES: Final = re.compile(r"(2[0-9]{2})(?:-(2[0-9]{2}))?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class EndpointOptions:
    """The rarely set columns of `endpoints`. None if the settings apply.

    Attributes:
        retry_schedule: in the syntax of the setting `retry.schedule`.
        headers: the endpoint's own header lines, as JSON text.
        success_statuses: for example `200,201,204` or `200-204`.
        profile: a preset of webhook/profile, `plain`, or `custom`; None if the setting `delivery.profile` applies.
        profile_spec: a custom profile, as JSON text.
        previous_secret: signs in addition to the secret during a rotation.
        previous_until_s: Unix seconds at which the rotation ends.
        filter: a jsonpath; events for which it is false are not delivered.
        rate_per_s: maximum of requests started per second.
        ordered: True to deliver one at a time per ordering_key.
        auth: how requests authenticate themselves (webhook/auth): JSON text, plain or encrypted.
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
        """The rate limit; None if there is none within the bounds. NaN and infinity arrive as texts."""
        asked = self.rate_per_s
        return asked if isinstance(asked, int | float) and RATE_MIN <= asked <= RATE_MAX else None


@functools.lru_cache(maxsize=10_000)
def read(text: str) -> EndpointOptions:
    """Parse the text of the column `options`."""
    return EndpointOptions(**orjson.loads(text))


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `{"name": "value", ...}`; webhook/headers decides whether they may be sent.

    Raises:
        ValueError: the text is not a JSON object with only strings as values.
    """
    found = orjson.loads(text)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("headers are not an object of texts")
    return tuple(found.items())


def parse_statuses(text: str) -> frozenset[int]:
    """Parse `200,201,204` or `200-204`: the 2xx status codes that count as success.

    Raises:
        ValueError: a part is neither a 2xx nor an ascending range of them, or the text has over 200 characters.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _STATUSES.fullmatch(part.strip())
        if match is None or (match[2] or match[1]) < match[1] or len(text) > STATUSES_LENGTH_MAX:
            raise ValueError("success_statuses are 2xx and ranges of them, as in 200,202-204")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)
