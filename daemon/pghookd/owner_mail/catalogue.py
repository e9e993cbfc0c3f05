"""The words of letters, one catalogue a language: files of TOML, ours and an operator's, read and checked once.

English is the reference: it says which keys there are, and which placeholders each may use. A catalogue of the
operator's may hold a few keys only, or a new language; a wrong key or placeholder costs that key and is told.

Never here: what a letter says in which order (owner_mail/content.py), markup.
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
_PLURALS_TRIED: Final = 200  # every rule that gettext knows of shows all its forms below
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
Texts = Mapping[str, tuple[str, ...]]


class CatalogueError(ValueError):
    """A catalogue cannot be used at all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """One language: its texts by key, and how it writes numbers and times.

    Attributes:
        language: its code, as `de`.
        texts: the forms of each text: one, or as many as `plural` chooses from.
        plural: which form a number takes.
        locale: the name that humanize knows the language by; it writes English where it knows none.
    """

    language: str
    texts: Texts
    plural: Callable[[int], int]
    locale: str

    def say(self, key: str, **values: str | int) -> str:
        """Return a text with its values; `n` chooses the form, numbers are written as the language does."""
        forms = self.texts[key]
        number = values.get("n", 1)
        place = self.plural(abs(number)) if len(forms) > 1 and isinstance(number, int) else 0
        shown = {
            name: self.number(value) if isinstance(value, int) else value for name, value in values.items()
        }
        return forms[min(place, len(forms) - 1)].format_map(shown)

    def has(self, key: str) -> bool:
        """Whether there is such a text."""
        return key in self.texts

    def number(self, value: float) -> str:
        """Write a number: `1,204` or `2.5`."""
        with self._spoken():
            if float(value).is_integer():
                return humanize.intcomma(int(value))
            return f"{value:.3g}".replace(".", humanize.decimal_separator())

    def duration(self, microseconds: int) -> str:
        """Write a length of time in its two greatest units, `2 days and 3 hours`; what is less is cut off."""
        seconds = max(microseconds, 0) // 1_000_000
        unit, name = _unit_of(seconds)
        whole = dt.timedelta(seconds=seconds - seconds % unit)
        with self._spoken():
            return humanize.precisedelta(whole, minimum_unit=name, suppress=("months", "years"), format="%d")

    def moment(self, at_us: int, zone: dt.tzinfo) -> str:
        """Write a moment in a zone, always named; the part for developers has it in UTC.

        Raises:
            OverflowError: no calendar has this moment.
        """
        return self.say("dates.moment", **self._values(_moment(at_us, zone)))

    def short_moment(self, at_us: int, zone: dt.tzinfo) -> str:
        """Write a moment without year and UTC, for subjects."""
        values = self._values(_moment(at_us, zone))
        return self.say("dates.short", **{name: values[name] for name in ("day", "month", "time", "zone")})

    def day(self, at_us: int, zone: dt.tzinfo) -> str:
        """Write a day without its year, for subjects."""
        at = _moment(at_us, zone)
        return self.say("dates.day", day=str(at.day), month=self.texts[MONTHS][at.month - 1])

    def _values(self, at: dt.datetime) -> dict[str, str]:
        month = self.texts[MONTHS][at.month - 1]
        return {
            "day": str(at.day), "month": month, "year": str(at.year), "time": f"{at:%H:%M}", "zone": _zone(at)
        }  # fmt: skip

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        """Let humanize speak this language; it keeps it per thread."""
        with contextlib.suppress(FileNotFoundError):  # a language that it does not know: English
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
    """Return a zone by its IANA name; UTC where there is none or it is unknown here."""
    if not name:
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name; a folder of the zones' files
        return dt.UTC


def moment_of(at_us: int) -> dt.datetime:
    """Return a moment in UTC.

    Raises:
        OverflowError: no calendar has it.
    """
    return _EPOCH + dt.timedelta(microseconds=at_us)


def _moment(at_us: int, zone: dt.tzinfo) -> dt.datetime:
    return moment_of(at_us).astimezone(zone)


def _zone(at: dt.datetime) -> str:
    """Return `CEST` where the zone has such a name, else `UTC+05:30`."""
    name, offset = at.tzname() or "", f"{at:%z}"
    return name if name.isalpha() else f"UTC{offset[:3]}:{offset[3:5]}"


# Reading ----------------------------------------------------------------------------------------------------


def catalogues(
    ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[dict[str, Words], tuple[str, ...]]:
    """Read catalogues from texts of TOML by language, the operator's laid over ours.

    Returns:
        the words by language, and a sentence for everything of the operator's that was left out.

    Raises:
        CatalogueError: one of ours is broken.
    """
    reference = _flat(_parsed(ours[REFERENCE]))
    known = {language: {**reference, **_flat(_parsed(text))} for language, text in ours.items()}
    faults: list[str] = []
    for language, text in theirs.items():
        under = known.get(language, reference)
        known[language] = {**under, **_usable(language, text, under, reference, faults)}
    return {language: _words(language, texts) for language, texts in known.items()}, tuple(faults)


def language_of(wanted: str | None, known: Iterable[str]) -> str:
    """Return the language to write in for what a site says, `de-AT` as well; English for what is unknown."""
    found = _LANGUAGE.match((wanted or "").lower())
    return found[0] if found and found[0] in known else REFERENCE


def faults_of(texts: Texts, reference: Texts) -> dict[str, str]:
    """Return what is wrong with texts, by key: the rest of a sentence that begins with the key."""
    return {key: fault for key, forms in texts.items() if (fault := _fault(key, forms, reference))}


def placeholders(form: str) -> frozenset[str]:
    """Return the names in braces of one text.

    Raises:
        ValueError: the braces do not match, or hold more than a name.
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
    """Return how many forms a plural rule chooses from."""
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
    """Return the texts that have several forms, but fewer than their language's numbers need."""
    needed = forms_of(gettext.c2py(all_texts["language.plural"][0]))
    few = [key for key, forms in texts.items() if key != MONTHS and 1 < len(forms) < needed]
    return dict.fromkeys(few, f"needs {needed} forms, as language.plural says")


def _words(language: str, texts: Texts) -> Words:
    return Words(language, texts, gettext.c2py(texts["language.plural"][0]), texts["language.humanize"][0])


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"is no TOML: {error}") from None


def _flat(tables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Turn tables of texts into forms by `table.key`."""
    flat: dict[str, tuple[str, ...]] = {}
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise CatalogueError(f"{table} stands in no table")
        for key, entry in entries.items():
            forms = (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, list) else ()
            if not forms or not all(isinstance(form, str) for form in forms):
                raise CatalogueError(f"{table}.{key} must be a text or a list of texts")
            flat[f"{table}.{key}"] = forms
    return flat
