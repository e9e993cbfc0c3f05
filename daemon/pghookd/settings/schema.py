"""Defines every setting once, with its section, name, bounds and default, in one frozen object.

A section is a class and a setting is a field. So the list in systemd/README.md, the names of environment variables and
the object that the daemon uses cannot drift apart. The first release accepts all settings, even those that have an
effect only in a later one.

Never here: where a value came from, files, environment variables (settings/load.py), secrets in texts.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from pghookd import __version__
from pghookd.settings import network
from pghookd.settings.durations import SCHEDULE_STEPS_MAX, parse_schedule
from pghookd.settings.keys import parse_keys

PROFILES: Final = (
    "standard",
    "simvoly",
    "github",
    "shopify",
    "woocommerce",
    "stripe",
    "svix",
)  # the presets in webhook/profile
_ADDRESS: Final = re.compile(r"[^\s\x00-\x1f\x7f,<>]+@[^\s\x00-\x1f\x7f,<>]+")


class Secret(pydantic.SecretStr):
    """A string that prints as `***`, also inside the object that contains it."""

    def __str__(self) -> str:
        return "***" if self.get_secret_value() else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"


def parse_sampling(text: str) -> int:
    """Parse `log.successes`: none gives 0, all gives 1, 1/N gives N.

    Raises:
        ValueError: the text is none of these.
    """
    if text in {"none", "all"}:
        return 0 if text == "none" else 1
    part = re.fullmatch(r"1/([1-9][0-9]{0,8})", text)
    if part is None:
        raise ValueError("must be none, all or 1/N, as in 1/100")
    return int(part[1])


# How a text becomes a value --------------------------------------------------------------------------------


def _from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _no_bool(value: object) -> object:
    """Reject `true` for a number, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic collects ValueError only
    return value


def _checked(check: Callable[[str], object]) -> pydantic.AfterValidator:
    """Return a validator that keeps a text if `check` does not raise; an empty text means not set."""

    def keep(text: str) -> str:
        if text:
            check(text)
        return text

    return pydantic.AfterValidator(keep)


def _fit_ports(texts: tuple[str, ...]) -> tuple[str, ...]:
    network.parse_ports(",".join(texts))
    return texts


def _fit_places(texts: tuple[str, ...]) -> tuple[str, ...]:
    network.parse_places(texts)
    return texts


def _fit_address(text: str) -> None:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be one email address, such as hooks@example.com")


def _fit_name(text: str) -> None:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable, without spaces at either end")


def _fit_profile(text: str) -> None:
    if text not in PROFILES:
        raise ValueError(f"must be one of {', '.join(PROFILES)}")


def _fit_url(text: str) -> None:
    if not text.isprintable() or " " in text or urlsplit(text).scheme not in {"http", "https"}:
        raise ValueError("must be a URL that starts with https:// or http://")


def _fit_unsubscribe(text: str) -> None:
    _fit_url(text)
    if "{token}" not in text:
        raise ValueError("must contain {token}")


def _fit_days(days: int) -> int:
    if days == 1:
        raise ValueError(
            "must be 0, which keeps all days, or at least 2: an event may be a day older than its id"
        )
    return days


def _fit_header(text: str) -> None:
    if not (text.isascii() and text.isprintable()) or text != text.strip():
        raise ValueError("must be printable ASCII, without spaces at either end")


def _fit_database(secret: Secret) -> Secret:
    text = secret.get_secret_value()
    if not text:
        return secret
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError(
            "must start with postgresql://, as in postgresql://user@host/name or ...?host=/run/postgresql"
        )
    _fit_authority(text)
    return secret


def _fit_proxy(secret: Secret) -> Secret:
    text = secret.get_secret_value()
    if text:
        network.parse_proxy(text)
    return secret


def _fit_keys(secret: Secret) -> Secret:
    text = secret.get_secret_value()
    if text.strip():
        parse_keys(text)
    return secret


def _fit_authority(url: str) -> None:
    try:
        _ = urlsplit(url).port
    except ValueError:
        # The library's message quotes the part it cannot parse: after a stray / or : this is half a password.
        raise ValueError(
            "has a host or port that cannot be read: percent-encode / : @ in the password"
        ) from None


_Number: TypeAlias = BeforeValidator
Share = Annotated[float, _Number(_no_bool), Field(ge=0, le=1)]
Positive = Annotated[float, _Number(_no_bool), Field(gt=0)]
OrOff = Annotated[float, _Number(_no_bool), Field(ge=0)]  # 0 = off
Count = Annotated[int, _Number(_no_bool), Field(ge=1)]
Waits = Annotated[
    tuple[Positive, ...], _from_text(parse_schedule), Field(min_length=1, max_length=SCHEDULE_STEPS_MAX)
]
Schedule = Annotated[tuple[Positive, ...], _from_text(parse_schedule), Field(max_length=SCHEDULE_STEPS_MAX)]
Words = Annotated[tuple[str, ...], _from_text(_split)]
Mailbox = Annotated[str, _checked(_fit_address)]
Url = Annotated[str, _checked(_fit_url)]


class SettingsSection(pydantic.BaseModel):
    """Base of all sections: frozen, finite numbers only, no unknown names, no values in error texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, validate_default=True
    )


class DatabaseSettings(SettingsSection):
    """The Postgres database with the schema `webhooks`."""

    url: Annotated[Secret, pydantic.AfterValidator(_fit_database)] = Secret("")  # empty: PG* variables
    heartbeat_s: Positive = 2
    lease_s: Positive = 10
    adopt: Literal["ask", "auto"] = "ask"
    home: Annotated[str, _checked(_fit_name), Field(max_length=100)] = ""  # name of the database; empty: none


class DeliverySettings(SettingsSection):
    """How requests are made."""

    concurrency: Annotated[Count, Field(le=10_000)] = 512
    endpoint_concurrency: Annotated[Count, Field(le=1000)] = 16
    timeout_s: Annotated[Positive, Field(le=300)] = 15
    connect_timeout_s: Annotated[Positive, Field(le=300)] = 5
    grace_s: Annotated[Positive, Field(le=3600)] = 20  # time for requests in flight to end after SIGTERM
    response_bytes_max: Annotated[int, _Number(_no_bool), Field(ge=0, le=65536)] = 4096  # stored per answer
    payload_bytes_max: Annotated[Count, Field(le=1_000_000_000)] = 10_000_000
    queue_bytes_max: Count = 67_108_864
    shards: Annotated[Count, Field(le=1024)] = 16
    profile: Annotated[str, _checked(_fit_profile), Field(min_length=1)] = PROFILES[0]
    user_agent: Annotated[str, _checked(_fit_header), Field(min_length=1)] = f"pghookd/{__version__}"


class RecorderSettings(SettingsSection):
    """How outcomes are gathered into batches."""

    batch_max: Annotated[Count, Field(le=10_000)] = 500
    batch_wait_ms: Annotated[OrOff, Field(le=1000)] = 5


class RetrySettings(SettingsSection):
    """When a failed delivery is tried again."""

    schedule: Schedule = parse_schedule(
        "5s,5m,30m,2h,5h,10h,14h,20h,24h"
    )  # wait after failure n; attempts = waits + 1; none: a single attempt
    jitter: Share = 0.2
    throttle_floor_s: OrOff = 60  # minimum wait after timeouts, 429, 502, 504
    retry_after_max_s: Positive = 86_400
    age_max_s: Positive = 358_500


class BreakerSettings(SettingsSection):
    """When a failing endpoint gets only probes."""

    attempts: Count = 20
    share: Share = 0.5
    probe_s: Positive = 30
    probe_max_s: Positive = 600


class DisableSettings(SettingsSection):
    """When an endpoint that keeps failing is disabled."""

    after_s: OrOff = 432_000
    events_min: Count = 3
    days_min: Count = 2
    warn_s: Positive = 86_400


class EgressSettings(SettingsSection):
    """Where requests may go."""

    allow: Annotated[Words, pydantic.AfterValidator(_fit_places)] = ()
    deny: Annotated[Words, pydantic.AfterValidator(_fit_places)] = ()
    https_only: bool = False
    ports: Annotated[Words, pydantic.AfterValidator(_fit_ports)] = _split(network.PORTS)
    proxy: Annotated[Secret, pydantic.AfterValidator(_fit_proxy)] = Secret("")  # may carry a password
    ca_file: str = ""  # empty: the system's certificates
    nat64: bool = False

    def policy(self) -> network.EgressPolicy:
        """Return the parsed policy that decides about destinations."""
        return network.EgressPolicy(
            allow=network.parse_places(self.allow),
            deny=network.parse_places(self.deny),
            https_only=self.https_only,
            ports=network.parse_ports(",".join(self.ports)),
            nat64=self.nat64,
        )

    def way_out(self) -> network.Proxy | None:
        """Return the proxy that requests go through; None if there is none."""
        text = self.proxy.get_secret_value()
        return network.parse_proxy(text) if text else None


class PollSettings(SettingsSection):
    """The slow poll for events that no doorbell announced."""

    fallback_s: OrOff = 5


class SmtpSettings(SettingsSection):
    """The mail server; no mails are sent if the host is empty."""

    host: str = ""
    port: Annotated[Count, Field(le=65535)] = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    username: str = ""
    password: Secret = Secret("")


class MailSettings(SettingsSection):
    """Which mails owners get, and how often."""

    sender: Mailbox = ""
    reply_to: Mailbox = ""
    operator: Mailbox = ""
    platform_name: str = ""
    console_url: Url = ""
    help_url: Url = ""
    unsubscribe_url: Annotated[str, _checked(_fit_unsubscribe)] = ""
    templates: str = ""  # a folder
    first_wait_s: OrOff = 600  # 0: a mail at the first failure
    gap_s: Positive = 1800
    urgent_gap_s: Positive = 600
    reminders: Waits = parse_schedule("6h,24h,72h,7d")
    recovered_after_s: Positive = 1800
    daily_max: Count = 6
    rate_per_min: Positive = 60
    digest_by: Literal["owner", "site"] = "owner"
    check_s: Positive = 30


class StormSettings(SettingsSection):
    """When so many sites fail at once that the cause is probably on our side."""

    share: Share = 0.3  # of the sites with traffic
    hosts_min: Count = 20  # registrable domains


class RetentionSettings(SettingsSection):
    """How long whole days, held deliveries, payloads and responses are kept."""

    days: Annotated[int, _Number(_no_bool), Field(ge=0), pydantic.AfterValidator(_fit_days)] = 90
    action: Literal["drop", "detach"] = "drop"
    unsettled_days: Annotated[int, _Number(_no_bool), Field(ge=0)] = 30
    records_days: Annotated[int, _Number(_no_bool), Field(ge=0)] = 400
    held_days: Positive = 14
    payload_days: OrOff = 0
    response_days: OrOff = 0


class SecretsSettings(SettingsSection):
    """The key that encrypts secrets at rest."""

    key: Annotated[Secret, pydantic.AfterValidator(_fit_keys)] = Secret("")  # several: the first encrypts


class LogSettings(SettingsSection):
    """Which log lines go to standard output, and in which format."""

    format: Literal["auto", "pretty", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    successes: Annotated[int, _from_text(parse_sampling), Field(ge=0)] = 0  # 0: none, 1: all, N: one of N


class Settings(SettingsSection):
    """All settings, by section."""

    database: DatabaseSettings = DatabaseSettings()
    delivery: DeliverySettings = DeliverySettings()
    recorder: RecorderSettings = RecorderSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    disable: DisableSettings = DisableSettings()
    egress: EgressSettings = EgressSettings()
    poll: PollSettings = PollSettings()
    smtp: SmtpSettings = SmtpSettings()
    mail: MailSettings = MailSettings()
    storm: StormSettings = StormSettings()
    retention: RetentionSettings = RetentionSettings()
    secrets: SecretsSettings = SecretsSettings()
    log: LogSettings = LogSettings()


def _named_fields() -> Iterator[tuple[str, pydantic.fields.FieldInfo]]:
    for section, holder in Settings.model_fields.items():
        kind = holder.annotation
        if isinstance(kind, type) and issubclass(kind, SettingsSection):
            for name, field in kind.model_fields.items():
                yield f"{section}.{name}", field


FIELDS: Final = dict(_named_fields())  # fields by `section.name`, in the order of this file
NAMES: Final = tuple(FIELDS)
SECRETS: Final = frozenset(name for name, field in FIELDS.items() if field.annotation is Secret)


def value_of(settings: Settings, name: str) -> Any:  # noqa: ANN401 - settings have different types
    """Return a setting by its full name, `section.name`."""
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)


# Combinations that are refused -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Contradiction:
    """Settings that are each within their bounds but contradict each other."""

    names: tuple[str, ...]
    text: str  # completes: "<first name> ..."


_BELOW: Final = (  # the first must be less than the second
    ("delivery.timeout_s", "delivery.grace_s"),
    ("disable.warn_s", "disable.after_s"),
)
_AT_MOST: Final = (  # the first must not be more than the second
    ("delivery.connect_timeout_s", "delivery.timeout_s"),
    ("delivery.payload_bytes_max", "delivery.queue_bytes_max"),
    ("breaker.probe_s", "breaker.probe_max_s"),
    ("mail.urgent_gap_s", "mail.gap_s"),
)


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Yield all contradictions between settings."""
    for low, high in _BELOW:
        limit = value_of(settings, high)
        off = high == "disable.after_s" and limit == 0
        if not off and value_of(settings, low) >= limit:
            yield Contradiction((high, low), f"must be more than {low}")
    for low, high in _AT_MOST:
        if value_of(settings, low) > value_of(settings, high):
            yield Contradiction((low, high), f"must not be more than {high}")
    if settings.database.heartbeat_s * 2 > settings.database.lease_s:
        yield Contradiction(
            ("database.lease_s", "database.heartbeat_s"), "must be at least twice database.heartbeat_s"
        )
    yield from _mail_contradictions(settings)


def _mail_contradictions(settings: Settings) -> Iterator[Contradiction]:
    smtp = settings.smtp
    if not smtp.host:
        return
    if smtp.tls == "none" and not _is_loopback(smtp.host):
        yield Contradiction(("smtp.tls", "smtp.host"), "may be none only if smtp.host is localhost")
    if not settings.mail.sender:
        yield Contradiction(("mail.sender", "smtp.host"), "must be set if smtp.host is set")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in {"localhost", "ip6-localhost"}


# Reloading -------------------------------------------------------------------------------------------------

FIXED: Final = ("database.", "delivery.shards")  # names and prefixes of settings that SIGHUP does not change


def reloaded(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings after a reload, and the names of those whose new value needs a restart."""
    waiting = tuple(
        name for name in NAMES if name.startswith(FIXED) and value_of(old, name) != value_of(new, name)
    )
    delivery = new.delivery.model_copy(update={"shards": old.delivery.shards})
    return new.model_copy(update={"database": old.database, "delivery": delivery}), waiting
