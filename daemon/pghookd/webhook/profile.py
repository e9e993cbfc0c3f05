"""Profiles: requests that also match the format of another sender, for receivers that already exist.

A profile defines the signature header, the signature's algorithm and encoding, the signed content, the kind of body
(payload or envelope), and further headers. The standard headers are sent as well, signed over the same body with the
same secret: adding headers is the migration path that Standard Webhooks proposes.

    preset       signature header          keyed with the secret's characters     body      source
    simvoly      x-webhook-signature       hex HMAC-SHA512(body)                  payload   INFERRED from receivers
    github       x-hub-signature-256       sha256= + hex HMAC-SHA256(body)        payload   docs.github.com, @octokit
    shopify      x-shopify-hmac-sha256     base64 HMAC-SHA256(body)               payload   shopify.dev
    woocommerce  x-wc-webhook-signature    base64 HMAC-SHA256(body)               payload   its class WC_Webhook
    stripe       stripe-signature          t=,v1= hex HMAC-SHA256(time.body)      envelope  docs.stripe.com, stripe
    svix         svix-signature            v1, + base64 HMAC-SHA256(id.time.body) payload   docs.svix.com, svix
                                           (key: base64 after whsec_)

Simvoly's own reference was not available. Two independent receivers for it compute this digest. One handler reads
`x-webhook-id`, most likely the subscription's id (like `X-WC-Webhook-ID`), so this preset sends the endpoint's id. Its
topic and source are the standard `x-webhook-topic` and `x-webhook-source`. Presets that compute HMAC(body) sign neither
time nor topic, so their receivers should move to the standard signature.

Never here: which endpoint has which profile, a clock, any text that contains a secret.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import orjson

from pghookd.settings.wrong_values import json_kind, quoted
from pghookd.webhook.envelope import fit_source
from pghookd.webhook.headers import COUNT_MAX, check_name, check_value
from pghookd.webhook.signing import PRIVATE_PREFIX, key_of

CUSTOM: Final = "custom"
PLAIN: Final = "plain"  # no profile, whatever the setting is
STANDARD: Final = "standard"  # in the column: use the setting delivery.profile; in the setting: no profile

_PLACE: Final = re.compile(r"\{([a-z_]+)\}")
_SIGNED: Final = frozenset({"id", "timestamp", "type", "body"})
_SHOWN: Final = frozenset(
    {"id", "timestamp", "type", "attempt", "triggered_at", "source", "source_host", "endpoint_id"}
)
_TEXT_LENGTH_MAX: Final = 200  # characters of a template
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "algorithm": ("sha1", "sha256", "sha512"),
    "encoding": ("hex", "base64"),
    "key": ("text", "standard"),
    "body": ("payload", "envelope"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A text with placeholders such as `{id}`."""

    parts: tuple[str, ...]  # alternating text and placeholder name; begins and ends with text

    @classmethod
    def of(cls, text: str, places: frozenset[str]) -> Template:
        """Parse a text.

        Raises:
            ValueError: the text is too long, not printable ASCII, or has an unknown placeholder.
        """
        parts = tuple(_PLACE.split(text))
        if len(text) > _TEXT_LENGTH_MAX:
            raise ValueError(
                f"a profile's text has {len(text)} characters; at most {_TEXT_LENGTH_MAX} are allowed"
            )
        if not (text.isascii() and (text.isprintable() or not text)):
            raise ValueError("a profile's text must be printable ASCII")
        if not places.issuperset(parts[1::2]) or any("{" in part or "}" in part for part in parts[::2]):
            allowed = ", ".join(f"{{{place}}}" for place in sorted(places)) or "none"
            raise ValueError(f"a profile's text has an unknown placeholder; allowed here: {allowed}")
        return cls(parts)

    def names(self, place: str) -> bool:
        """Return True if the template has this placeholder."""
        return place in self.parts[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with every placeholder replaced."""
        return "".join(values[part] if i % 2 else part for i, part in enumerate(self.parts))


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """The format of a profile's requests. Its fields are the keys allowed in `endpoints.profile_spec`.

    Attributes:
        header: name of the signature header; None if there is none.
        algorithm: hash of the HMAC: sha1, sha256 or sha512.
        encoding: encoding of the signature: hex (lower case) or base64.
        opening: text before all signatures, such as `t={timestamp},`.
        prefix: text before each signature, such as `sha256=`.
        joint: text between the signatures during a rotation; None if only the newest secret signs.
        signed: the signed content, such as `{id}.{timestamp}.{body}`.
        key: `text` for the secret's characters, whatever its prefix; `standard` for the key of Standard Webhooks.
        body: `payload` for the producer's own bytes; `envelope` for the envelope around them.
        headers: further lines, such as x-github-event: {type}; a line that needs an unknown source is not sent.
    """

    header: str | None = None
    algorithm: str = "sha256"
    encoding: str = "hex"
    opening: str = ""
    prefix: str = ""
    joint: str | None = None
    signed: str = "{body}"
    key: str = "text"
    body: str = "payload"
    headers: tuple[tuple[str, str], ...] = ()


SPEC_NAMES: Final = tuple(field.name for field in dataclasses.fields(Profile))
PRESETS: Final[Mapping[str, Profile]] = {
    "simvoly": Profile(
        header="x-webhook-signature",
        algorithm="sha512",
        headers=(("x-webhook-id", "{endpoint_id}"),),
    ),
    "github": Profile(
        header="x-hub-signature-256",
        prefix="sha256=",
        headers=(
            ("x-github-event", "{type}"),
            ("x-github-delivery", "{id}"),
            ("x-github-hook-id", "{endpoint_id}"),
        ),
    ),
    "shopify": Profile(
        header="x-shopify-hmac-sha256",
        encoding="base64",
        headers=(
            ("x-shopify-topic", "{type}"),
            ("x-shopify-shop-domain", "{source_host}"),
            ("x-shopify-webhook-id", "{id}"),
            ("x-shopify-event-id", "{id}"),
            ("x-shopify-triggered-at", "{triggered_at}"),
        ),
    ),
    "woocommerce": Profile(
        header="x-wc-webhook-signature",
        encoding="base64",
        headers=(
            ("x-wc-webhook-topic", "{type}"),
            ("x-wc-webhook-source", "{source}"),
            ("x-wc-webhook-id", "{endpoint_id}"),
            ("x-wc-webhook-delivery-id", "{id}"),
        ),
    ),
    "stripe": Profile(
        header="stripe-signature",
        opening="t={timestamp},",
        prefix="v1=",
        joint=",",
        signed="{timestamp}.{body}",
        body="envelope",
    ),
    "svix": Profile(
        header="svix-signature",
        encoding="base64",
        prefix="v1,",
        joint=" ",
        signed="{id}.{timestamp}.{body}",
        key="standard",
        headers=(("svix-id", "{id}"), ("svix-timestamp", "{timestamp}")),
    ),
}
NAMES: Final = (STANDARD, PLAIN, *PRESETS, CUSTOM)


def profile_of(name: str, spec: str | None = None) -> Profile | None:
    """Return the profile of a name; None for `standard` and `plain`.

    Args:
        name: one of NAMES.
        spec: the JSON text of `profile_spec`, for `custom`.

    Raises:
        ValueError: the profile does not exist, or the spec cannot be used.
    """
    if name in {STANDARD, PLAIN}:
        return None
    if name == CUSTOM:
        return parse_spec(spec or "null")
    if name not in PRESETS:
        raise ValueError(f"unknown profile {quoted(name)}; choose {', '.join(NAMES)}")
    return PRESETS[name]


def parse_spec(text: str) -> Profile:
    """Parse a custom profile from JSON: an object with the fields of Profile, where `headers` maps names to texts.

    Raises:
        ValueError: the text is not such an object.
    """
    try:
        spec: Any = orjson.loads(text)
    except ValueError as error:
        raise ValueError(f"profile_spec is not valid JSON: {error}") from None
    if not isinstance(spec, dict):
        raise ValueError(f"profile_spec must be an object, not {json_kind(spec)}")  # noqa: TRY004 - one kind of error
    unknown = sorted(spec.keys() - set(SPEC_NAMES))
    if unknown:
        raise ValueError(
            f"profile_spec has the unknown name {quoted(unknown[0])}; allowed are {', '.join(SPEC_NAMES)}"
        )
    headers = spec.pop("headers", {})
    if not isinstance(headers, dict):
        raise ValueError(f"headers in profile_spec must be an object, not {json_kind(headers)}")  # noqa: TRY004 - as above
    wrong = [(k, v) for k, v in (*spec.items(), *headers.items()) if not isinstance(v, str)]
    if wrong:
        name, value = wrong[0]
        raise ValueError(f"{quoted(name)} in profile_spec must be a string, not {json_kind(value)}")
    return Profile(**spec, headers=tuple(headers.items()))


# Prepared for one endpoint ------------------------------------------------------------------------------------------

Line: TypeAlias = tuple[str, Template]


@dataclasses.dataclass(frozen=True, slots=True)
class SigningSecrets:
    """The signing secret and, during a rotation, the previous one, which signs until `until_s` (Unix seconds)."""

    secret: str | None = dataclasses.field(default=None, repr=False)
    previous: str | None = dataclasses.field(default=None, repr=False)
    until_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileHead:
    """The lines that a profile adds to each request of an endpoint; make one per endpoint and reuse it.

    Attributes:
        profile: the profile.
        lines: further headers.
        opening: the text before the signatures.
        signed: the signed content.
        known: values that are the same on every attempt.
        keys: HMAC keys, the newest first; empty if nothing is signed.
        until_s: Unix seconds from which only the newest key signs.
        names: lower-case names of all its headers.
    """

    profile: Profile
    lines: tuple[Line, ...]
    opening: Template
    signed: Template
    known: Mapping[str, str]
    keys: tuple[bytes, ...] = dataclasses.field(repr=False)
    until_s: float
    names: frozenset[str]

    @property
    def is_bare(self) -> bool:
        """Return True if the body is the payload alone."""
        return self.profile.body == "payload"

    @classmethod
    def of(
        cls, profile: Profile, secrets: SigningSecrets, source: str | None, endpoint_id: int
    ) -> ProfileHead:
        """Prepare a profile for an endpoint.

        Args:
            profile: a preset or a custom one.
            secrets: the endpoint's secrets; a `whsk_` secret signs nothing here, because its receivers do not have it.
            source: `sites.url`.
            endpoint_id: the endpoint's id.

        Raises:
            ValueError: the profile has an unknown choice or placeholder, or a header that is not allowed.
        """
        _check_choices(profile)
        known = _known(source, endpoint_id)
        lines = [
            (check_name(name, of_profile=True), Template.of(text, _SHOWN)) for name, text in profile.headers
        ]
        sent = [(name, text) for name, text in lines if all(known.get(p, "-") for p in text.parts[1::2])]
        names = [name.lower() for name, _ in lines]
        if profile.header is not None:
            names.append(check_name(profile.header, of_profile=True).lower())
        if len(set(names)) < len(names):
            raise ValueError(f"the profile has a header twice: {', '.join(sorted(names))}")
        if len(names) > COUNT_MAX:
            raise ValueError(f"the profile has {len(names)} headers; at most {COUNT_MAX} are allowed")
        signed = Template.of(profile.signed, _SIGNED)
        if not signed.names("body"):
            raise ValueError(
                f"the profile's signed content must contain {{body}}; it is {quoted(profile.signed)}"
            )
        opening = Template.of(profile.opening, _SHOWN)
        keys, names_all = _keys(profile, secrets), frozenset(names)
        made = cls(profile, tuple(sent), opening, signed, known, keys, secrets.until_s, names_all)
        made.head(webhook_id="evt_1", timestamp_s=0, event_type="a", attempt=1, triggered_at="-", body=b"")
        return made

    def head(
        self,
        *,
        webhook_id: str,
        timestamp_s: int,
        event_type: str,
        attempt: int,
        triggered_at: str,
        body: bytes,
    ) -> bytes:
        """Return the lines of one attempt, each with its line end; arguments as for `StaticHead.head`.

        Raises:
            ValueError: a line would be invalid; nothing is sent.
        """
        values = {
            **self.known,
            "id": webhook_id,
            "timestamp": str(timestamp_s),
            "type": event_type,
            "attempt": str(attempt),
            "triggered_at": triggered_at,
        }
        lines = [(name, text.fill(values)) for name, text in self.lines]
        if self.profile.header is not None and self.keys:
            lines.append((self.profile.header, self._signatures(values, timestamp_s, body)))
        return "".join(f"{name}: {check_value(name, value)}\r\n" for name, value in lines).encode("ascii")

    def _signatures(self, values: Mapping[str, str], timestamp_s: int, body: bytes) -> str:
        profile = self.profile
        keys = self.keys if timestamp_s < self.until_s and profile.joint is not None else self.keys[:1]
        content = [
            body if i % 2 and part == "body" else (values[part] if i % 2 else part).encode("ascii")
            for i, part in enumerate(self.signed.parts)
        ]
        made = (profile.prefix + _signature(profile, key, content) for key in keys)
        return self.opening.fill(values) + (profile.joint or "").join(made)


def _check_choices(profile: Profile) -> None:
    for field, choices in _CHOICES.items():
        value = getattr(profile, field)
        if value not in choices:
            raise ValueError(f"{field} of the profile must be {' or '.join(choices)}; it is {quoted(value)}")
    for text in (profile.prefix, profile.joint or ""):
        Template.of(text, frozenset())


def _known(source: str | None, endpoint_id: int) -> dict[str, str]:
    sent = fit_source(source).decode("ascii")
    try:
        host = urlsplit(sent).hostname or ""
    except ValueError:
        host = ""
    return {"source": sent, "source_host": host, "endpoint_id": str(endpoint_id)}


def _keys(profile: Profile, secrets: SigningSecrets) -> tuple[bytes, ...]:
    if secrets.secret is None or secrets.secret.startswith(PRIVATE_PREFIX):
        return ()
    given = (secrets.secret, secrets.previous)
    shared = [text for text in given if text is not None and not text.startswith(PRIVATE_PREFIX)]
    if profile.key == "standard":
        return tuple(key_of(text) for text in shared)
    return tuple(text.encode("utf-8", "surrogatepass") for text in shared)


def _signature(profile: Profile, key: bytes, content: Sequence[bytes]) -> str:
    made = hmac.new(key, digestmod=profile.algorithm)
    for part in content:
        made.update(part)
    return made.hexdigest() if profile.encoding == "hex" else base64.b64encode(made.digest()).decode("ascii")
