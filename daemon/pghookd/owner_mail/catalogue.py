"""The texts of letters, one catalogue per language: built-in and operator's TOML files, read and checked once.

English is the reference: it defines the allowed keys, and the allowed placeholders of each. An operator's catalogue may
contain only a few keys, or a new language. A wrong key or placeholder drops only that key, and is reported.

Never here: the content and order of a letter (owner_mail/content/), markup.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import gettext
import re
import string
import tomllib
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import humanize

REFERENCE: Final = "en"
MONTHS: Final = "dates.months"
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}")
_PLURALS_TRIED: Final = 200  # every known gettext rule uses all its forms for numbers below this
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
Texts = Mapping[str, tuple[str, ...]]


class CatalogueError(ValueError):
    """A whole catalogue is unusable."""


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """One language: its texts by key, and its formats of numbers and times.

    Attributes:
        language: its code, such as `de`.
        texts: the forms of each text: one form, or one per plural form.
        plural: returns the index of the form for a number.
        locale: the language's name in humanize, which writes English for an unknown name.
    """

    language: str
    texts: Texts
    plural: Callable[[int], int]
    locale: str

    def say(self, key: str, **values: str | int) -> str:
        """Return a text with its values; `n` selects the form, and numbers are in the format of the language."""
        forms = self.texts[key]
        number = values.get("n", 1)
        place = self.plural(abs(number)) if len(forms) > 1 and isinstance(number, int) else 0
        shown = {
            name: self.number(value) if isinstance(value, int) else value for name, value in values.items()
        }
        return forms[min(place, len(forms) - 1)].format_map(shown)

    def has(self, key: str) -> bool:
        """Return True if there is such a text."""
        return key in self.texts

    def number(self, value: float) -> str:
        """Return a number as text: `1,204` or `2.5`."""
        with self._spoken():
            if float(value).is_integer():
                return humanize.intcomma(int(value))
            return f"{value:.3g}".replace(".", humanize.decimal_separator())

    def duration(self, microseconds: int) -> str:
        """Return a duration in its two largest units, such as `2 days and 3 hours`, rounded down."""
        seconds = max(microseconds, 0) // 1_000_000
        unit, name = _unit_of(seconds)
        whole = dt.timedelta(seconds=seconds - seconds % unit)
        with self._spoken():
            return humanize.precisedelta(whole, minimum_unit=name, suppress=("months", "years"), format="%d")

    def moment(self, at_us: int, zone: dt.tzinfo) -> str:
        """Return a time in a zone, with the zone's name; the lines for developers use UTC instead.

        Raises:
            OverflowError: the time is outside the range of dates.
        """
        return self.say("dates.moment", **self._values(_moment(at_us, zone)))

    def short_moment(self, at_us: int, zone: dt.tzinfo) -> str:
        """Return a time in a zone without its year, for subjects."""
        values = self._values(_moment(at_us, zone))
        return self.say("dates.short", **{name: values[name] for name in ("day", "month", "time", "zone")})

    def day(self, at_us: int, zone: dt.tzinfo) -> str:
        """Return a day without its year, for subjects."""
        at = _moment(at_us, zone)
        return self.say("dates.day", day=str(at.day), month=self.texts[MONTHS][at.month - 1])

    def _values(self, at: dt.datetime) -> dict[str, str]:
        month = self.texts[MONTHS][at.month - 1]
        return {
            "day": str(at.day), "month": month, "year": str(at.year), "time": f"{at:%H:%M}", "zone": _zone(at)
        }  # fmt: skip

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        """Make humanize use this language, which it stores per thread, for the body."""
        with contextlib.suppress(FileNotFoundError):  # humanize does not know the language and writes English
            humanize.activate(self.locale)
        try:
            yield
        finally:
            humanize.deactivate()


def _unit_of(seconds: int) -> tuple[int, str]:
    if seconds >= _DAY_S:
        return _HOUR_S, "hours"
    return (_MINUTE_S, "minutes") if seconds >= _MINUTE_S else (1, "seconds")


# Times ------------------------------------------------------------------------------------------------------


def zone_of(name: str | None) -> dt.tzinfo:
    """Return a zone by its IANA name; UTC if the name is missing or unknown."""
    if not name:
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a valid name; a directory of zone files
        return dt.UTC


def moment_of(at_us: int) -> dt.datetime:
    """Return a time in UTC.

    Raises:
        OverflowError: the time is outside the range of dates.
    """
    return _EPOCH + dt.timedelta(microseconds=at_us)


def _moment(at_us: int, zone: dt.tzinfo) -> dt.datetime:
    return moment_of(at_us).astimezone(zone)


def _zone(at: dt.datetime) -> str:
    """Return a zone abbreviation such as `CEST`, or `UTC+05:30` if the zone has none."""
    name, offset = at.tzname() or "", f"{at:%z}"
    return name if name.isalpha() else f"UTC{offset[:3]}:{offset[3:5]}"


# Reading ----------------------------------------------------------------------------------------------------


def catalogues(
    ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[dict[str, Words], tuple[str, ...]]:
    """Parse catalogues from TOML texts by language; the operator's texts override the built-in ones.

    Returns:
        The words by language, and a sentence for each of the operator's texts that was dropped.

    Raises:
        CatalogueError: a built-in catalogue is unusable.
    """
    reference = _flat(_parsed(ours[REFERENCE]))
    known = {language: {**reference, **_flat(_parsed(text))} for language, text in ours.items()}
    faults: list[str] = []
    for language, text in theirs.items():
        under = known.get(language, reference)
        known[language] = {**under, **_usable(language, text, under, reference, faults)}
    return {language: _words(language, texts) for language, texts in known.items()}, tuple(faults)


def language_of(wanted: str | None, known: Iterable[str]) -> str:
    """Return the known language for a site's setting, which may be a tag such as `de-AT`; otherwise English."""
    found = _LANGUAGE.match((wanted or "").lower())
    return found[0] if found and found[0] in known else REFERENCE


def faults_of(texts: Texts, reference: Texts) -> dict[str, str]:
    """Return the faults of texts, by key; each completes a sentence that begins with the key."""
    return {key: fault for key, forms in texts.items() if (fault := _fault(key, forms, reference))}


def placeholders(form: str) -> frozenset[str]:
    """Return the names in braces of one text.

    Raises:
        ValueError: the braces do not match, or contain more than a name.
    """
    names = set()
    for _, name, spec, conversion in string.Formatter().parse(form):
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"{{{name}}} must be a name alone")
        names.add(name)
    return frozenset(names)


def forms_of(rule: Callable[[int], int]) -> int:
    """Return the number of forms of a plural rule."""
    return 1 + max(rule(number) for number in range(_PLURALS_TRIED))


def _usable(language: str, text: str, under: Texts, reference: Texts, faults: list[str]) -> Texts:
    where = f"words/{language}.toml"
    try:
        texts = _flat(_parsed(text))
    except CatalogueError as error:
        faults.append(f"{where}: {error}")
        return {}
    wrong = faults_of(texts, reference)
    if "language.plural" not in wrong:
        wrong |= _too_few({**under, **texts}, texts)
    faults += [f"{where}: {key} {fault}" for key, fault in wrong.items()]
    return {key: forms for key, forms in texts.items() if key not in wrong}


def _fault(key: str, forms: tuple[str, ...], reference: Texts) -> str | None:
    if key not in reference:
        return "is not a key"
    if key == MONTHS and len(forms) != len(reference[MONTHS]):
        return "must list twelve months"
    if len(forms) > 1 and len(reference[key]) == 1:
        return "must be one text"
    try:
        if key == "language.plural":
            forms_of(gettext.c2py(forms[0]))
        used = frozenset().union(*map(placeholders, forms))
    except (ValueError, ArithmeticError) as error:
        return f"cannot be read: {error}"
    unknown = used - frozenset().union(*map(placeholders, reference[key]))
    return f"has no {{{min(unknown)}}}" if unknown else None


def _too_few(all_texts: Texts, texts: Texts) -> dict[str, str]:
    """Return the texts that have several forms, but fewer than their language's plural rule needs."""
    needed = forms_of(gettext.c2py(all_texts["language.plural"][0]))
    few = [key for key, forms in texts.items() if key != MONTHS and 1 < len(forms) < needed]
    return dict.fromkeys(few, f"needs {needed} forms, as language.plural says")


def _words(language: str, texts: Texts) -> Words:
    return Words(language, texts, gettext.c2py(texts["language.plural"][0]), texts["language.humanize"][0])


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"is not valid TOML: {error}") from None


def _flat(tables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the forms by `table.key` from tables of texts."""
    flat: dict[str, tuple[str, ...]] = {}
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise CatalogueError(f"{table} stands in no table")
        for key, entry in entries.items():
            forms = (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, list) else ()
            if not forms or not all(isinstance(form, str) for form in forms):
                raise CatalogueError(f"{table}.{key} must be a string or a list of strings")
            flat[f"{table}.{key}"] = forms
    return flat
