"""Rules for the header lines that an endpoint's owner may add to a request.

A header can forge the end of a request or its origin, so an unsafe name is rejected and never repaired. Rejected are
names that frame a message (RFC 9112, 6; RFC 9110, 7.6), and names that the daemon sends itself. Also rejected are names
that claim a route which the request did not take, and names that cloud metadata services require. `_` counts as `-`,
because CGI and WSGI map both to one name. Migration 0004 checks the same in SQL; this is the second check.

Never here: which headers a request has, the daemon's own values, secrets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

COUNT_MAX: Final = 20
BYTES_MAX: Final = 4096  # for one value, and for all lines of an endpoint together

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # a token: RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")  # RFC 9110, 5.5, without obs-text
_FORBIDDEN: Final = (
    "webhook-.*|content-.*|proxy-.*|x-forwarded-.*|x-aws-ec2-metadata-.*"
    "|host|transfer-encoding|connection|te|trailer|upgrade|expect|keep-alive|http2-settings"
    "|user-agent|accept|accept-encoding|cookie|forwarded|via|x-real-ip|metadata|metadata-flavor"
)
_RESERVED: Final = re.compile(f"{_FORBIDDEN}|x-webhook-.*")
_OURS: Final = re.compile(f"{_FORBIDDEN}|x-webhook-(?:topic|source|attempt|triggered-at)")


def check_name(name: str, *, of_profile: bool = False) -> str:
    """Return a header's name if it is allowed.

    Args:
        name: the name as it would be sent.
        of_profile: the header belongs to a profile; profiles may use `x-webhook-*` names that the daemon does not.

    Raises:
        ValueError: the name is not a token of at most 100 characters, or it is reserved.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError("a header's name is not a token")
    if (_OURS if of_profile else _RESERVED).fullmatch(name.lower().replace("_", "-")):
        raise ValueError(f"the header {name} may not be set")
    return name


def check_value(name: str, value: str) -> str:
    """Return a header's value if it is allowed; the error message does not quote it.

    Raises:
        ValueError: the value is empty, longer than 4,096 characters, not printable ASCII, or has blanks around it.
    """
    if len(value) > BYTES_MAX or _VALUE.fullmatch(value) is None:
        raise ValueError(f"the value of the header {name} is not printable ASCII without blanks around it")
    return value


def static_lines(headers: Sequence[tuple[str, str]]) -> bytes:
    """Return the lines of an endpoint's own headers, each with its line end.

    Raises:
        ValueError: a header is not allowed or occurs twice, or the headers are too many or too long.
    """
    if len(headers) > COUNT_MAX:
        raise ValueError(f"there are more than {COUNT_MAX} headers")
    if len({name.lower() for name, _ in headers}) < len(headers):
        raise ValueError("a header is there twice")
    lines = "".join(f"{check_name(name)}: {check_value(name, value)}\r\n" for name, value in headers)
    if len(lines) > BYTES_MAX:
        raise ValueError(f"the headers are longer than {BYTES_MAX} bytes")
    return lines.encode("ascii")
