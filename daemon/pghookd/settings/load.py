"""Loads the settings from environment, credentials and TOML, and reports all faults at once.

pydantic-settings merges the layers. Its own readers are not used: they decode lists as JSON, silently skip unknown
variables and missing files, and print wrong values, even passwords. So each layer is read here, and the place of every
value is kept. A fault names the variable, file or TOML key, in the operator's words.

Never here: the meaning of a setting (settings/schema.py), a secret's value in a text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pydantic
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pghookd.settings import schema as core
from pghookd.settings.schema import Settings

PREFIX: Final = "PGHOOKD_"
_SHOWN_MAX: Final = 40  # characters of a wrong value
_FILE_BYTES_MAX: Final = 65_536  # a credential is one line; the limit stops reading a file without end


class SettingsError(ValueError):
    """The settings have faults.

    Attributes:
        faults: a sentence each, which names the variable, the file or the key.
        rest: the settings with defaults in place of wrong values, for further checks only; None if `database.url`
            itself is wrong.
    """

    def __init__(self, faults: tuple[str, ...], rest: Settings | None = None) -> None:
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        super().__init__("\n".join([f"{count} in the settings:", *(f"  {fault}" for fault in faults)]))
        self.faults = faults
        self.rest = rest


@dataclasses.dataclass(slots=True)
class _Layer:
    """The values of one source by full name, each with a description of its place."""

    values: dict[str, object] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)

    def put(self, name: str, value: object, place: str) -> None:
        self.values[name] = value
        self.places[name] = place

    def without(self, names: set[str]) -> _Layer:
        return _Layer({name: value for name, value in self.values.items() if name not in names})

    def nested(self) -> dict[str, dict[str, object]]:
        nested: dict[str, dict[str, object]] = {}
        for name, value in self.values.items():
            section, _, field = name.partition(".")
            nested.setdefault(section, {})[field] = value
        return nested


def load(config_path: Path | None, environ: Mapping[str, str], credentials_dir: Path | None) -> Settings:
    """Return the settings: environment over credentials over TOML over defaults.

    Args:
        config_path: the file named by `--config`, which must exist; None if there is none.
        environ: the environment; the names of settings begin with PGHOOKD_.
        credentials_dir: the folder of `section.name` files ($CREDENTIALS_DIRECTORY); None if there is none.

    Raises:
        SettingsError: with all faults.
    """
    layers = (_read_environment(environ), _read_credentials(credentials_dir), _read_toml(config_path))
    faults = [fault for layer in layers for fault in layer.faults]
    places: dict[str, str] = {}
    for layer in reversed(layers):
        places.update(layer.places)
    wrong: set[str] = set()
    try:
        settings = _merge(layers)
    except pydantic.ValidationError as error:
        wrong = {_name_of(fault) for fault in error.errors()}
        faults += _told(error, layers, places)
        # Merge again without the wrong values, so that contradictions between the others are reported as well.
        settings = _merge([layer.without(wrong) for layer in layers])
    for contradiction in core.contradictions(settings):
        if wrong.isdisjoint(contradiction.names):
            faults.append(_told_contradiction(contradiction, settings, places))
    faults += _told_certificates(settings.egress.ca_file, places)
    if faults:
        raise SettingsError(tuple(faults), None if "database.url" in wrong else settings)
    return settings


def exposed(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that contain a secret: child processes inherit variables, but not credentials."""
    return tuple(
        variable(name)
        for name in sorted(core.SECRETS)
        if (value := environ.get(variable(name))) and (name not in _URLS or _has_password(value))
    )


_URLS: Final = frozenset({"database.url", "egress.proxy"})


def _has_password(url: str) -> bool:
    authority = url.partition("://")[2].partition("/")[0]
    return ":" in authority.rpartition("@")[0] or "password=" in url


# Merging ----------------------------------------------------------------------------------------------------


class _Source(PydanticBaseSettingsSource):
    """One layer as a source for pydantic-settings."""

    def __init__(self, settings_cls: type[BaseSettings], layer: _Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._layer.nested().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._layer.nested()


def _merge(layers: Iterable[_Layer]) -> Settings:
    class Layered(BaseSettings):
        """Accepts any value; `Settings` validates them."""

        model_config = SettingsConfigDict(extra="allow")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(_Source(settings_cls, layer) for layer in layers)

    return Settings.model_validate(Layered().model_extra)


# Reading ----------------------------------------------------------------------------------------------------


def variable(name: str) -> str:
    """Return the environment variable of a setting: `delivery.timeout_s` is PGHOOKD_DELIVERY_TIMEOUT_S."""
    return PREFIX + name.replace(".", "_", 1).upper()


_BY_VARIABLE: Final = {variable(name): name for name in core.NAMES}


def _read_environment(environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    for key, value in environ.items():
        if key.startswith(PREFIX + "TEST_") or not key.upper().startswith(PREFIX):
            continue
        name = _BY_VARIABLE.get(key)
        if name is None:
            layer.faults.append(f"{_clean(key)} is not a setting{_nearest(key.upper(), _BY_VARIABLE)}")
        else:
            layer.put(name, value, key)
    return layer


def _read_credentials(folder: Path | None) -> _Layer:
    layer = _Layer()
    if folder is None:
        return layer
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        layer.faults.append(f"the credentials folder {_clean(str(folder))} cannot be read: {error.strerror}")
        return layer
    for file in files:
        place = f"the credential {_clean(file.name)} (in {_clean(str(folder))})"
        if file.name not in core.FIELDS:
            layer.faults.append(f"{place} is not a setting{_nearest(file.name, core.FIELDS)}")
            continue
        try:
            layer.put(file.name, _credential(file), place)
        except (OSError, ValueError) as error:
            layer.faults.append(f"{place} cannot be read: {_why(error)}")
    return layer


def _credential(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ValueError(f"it is longer than {_FILE_BYTES_MAX} bytes")
    return content.decode("utf-8").rstrip("\r\n")


def _read_toml(path: Path | None) -> _Layer:
    layer = _Layer()
    if path is None:
        return layer
    shown = _clean(str(path))
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        wrong = "is not valid TOML" if isinstance(error, tomllib.TOMLDecodeError) else "cannot be read"
        layer.faults.append(f"the file {shown} {wrong}: {_why(error)}")
        return layer
    for section, values in content.items():
        if section not in Settings.model_fields:
            layer.faults.append(
                f"[{_clean(section)}] in {shown} is not a section{_nearest(section, _SECTIONS)}"
            )
        elif not isinstance(values, dict):
            layer.faults.append(f"{section} in {shown} must be a section: [{section}]")
        else:
            _take_section(layer, section, values, shown)
    return layer


_SECTIONS: Final = tuple(Settings.model_fields)


def _take_section(layer: _Layer, section: str, values: Mapping[str, object], shown: str) -> None:
    for key, value in values.items():
        name = f"{section}.{key}"
        if name in core.FIELDS:
            layer.put(name, value, f"{name} in {shown}")
        else:
            layer.faults.append(f"{_clean(name)} in {shown} is not a setting{_nearest(name, core.FIELDS)}")


def _why(error: Exception) -> str:
    """Return why a file cannot be read, without quoting its content."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    # tomllib's messages give only the place of an error, or the names of keys, which are not secret.
    return str(error)


def _nearest(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


# Telling ----------------------------------------------------------------------------------------------------


def _name_of(fault: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in fault["loc"][:2])


def _told(
    error: pydantic.ValidationError, layers: tuple[_Layer, ...], places: Mapping[str, str]
) -> Iterator[str]:
    for name, fault in {_name_of(fault): fault for fault in reversed(error.errors())}.items():
        yield f"{places.get(name, name)} {_in_words(fault)}{_shown(name, layers)}"


def _shown(name: str, layers: tuple[_Layer, ...]) -> str:
    if name in core.SECRETS:
        return ""
    for layer in layers:
        if name in layer.values:
            text = str(layer.values[name])
            cut = text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."
            return f" (it is {_clean(cut)!r})"
    return ""


def _in_words(fault: Mapping[str, Any]) -> str:
    kind, limits = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        text = str(limits["error"])
        return text if text.startswith(("must", "has", "may")) else f"is wrong: {text}"
    with contextlib.suppress(KeyError, IndexError):
        if kind in _WORDS:
            return _WORDS[kind].format(**limits)
    return f"is wrong: {fault['msg'][0].lower()}{fault['msg'][1:]}"


_WORDS: Final = {
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list, or a string with commas",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "must be a lower-case word",
}


def _told_certificates(file: str, places: Mapping[str, str]) -> list[str]:
    """Return the faults of the operator's CA file, without which endpoints that need it cannot be reached."""
    try:
        if file:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:
        why = "it contains no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        return [f"{places.get('egress.ca_file', 'egress.ca_file')} cannot be used: {why} (it is {file!r})"]
    return []


def _told_contradiction(
    contradiction: core.Contradiction, settings: Settings, places: Mapping[str, str]
) -> str:
    first = contradiction.names[0]
    values = ", ".join(
        f"{name} is {core.value_of(settings, name)!r}{'' if name in places else ' by default'}"
        for name in contradiction.names
    )
    return f"{places.get(first, first)} {contradiction.text} ({values})"
