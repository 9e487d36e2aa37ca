"""Where a client in danger is sent: helplines and emergency numbers by locale, from `resources.toml`."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.words import normalise, phrases

TABLE = Path(__file__).with_name("resources.toml")
LOCAL_EMERGENCY = "your local emergency number"

_ANY_EMERGENCY = r"emergency (number|services|line|room)|an ambulance"
_ANY_HELPLINE = r"(suicide|crisis|mental health|support) (lines?|hotlines?|help ?lines?|lifelines?)"
_DIALLED = phrases(r"(call|calling|text|texting|dial|dialling|ring|phone|number) (\w+ ){0,3}?(?P<number>\d[\d -]+\d)")


@dataclass(frozen=True)
class Helpline:
    """People who answer: `call` and `text` are numbers ("" for none), `serves` is suicide, violence or substances."""

    name: str
    hours: str
    serves: str
    source: str
    call: str = ""
    text: str = ""

    @property
    def how(self) -> str:
        """What to do: "call or text 988", "call Lifeline on 13 11 14"."""
        if self.call and self.call == self.text:
            return f"call or text {self.call}"
        named = "" if self.call == self.name else f"{self.name} on "
        return f"call {named}{self.call}" if self.call else f"text {named}{self.text}"


@dataclass(frozen=True)
class Resources:
    """A locale's helplines. `place` is where they answer, `emergency` its emergency number, `checked` the day when the
    numbers were last compared with their sources, or "never"; all but `locale` and `checked` are empty in the fallback,
    which names no number."""

    locale: str
    place: str
    emergency: str
    checked: str
    helplines: tuple[Helpline, ...]

    @property
    def help(self) -> str:
        """One sentence that says where to turn; it holds for readers elsewhere too."""
        if not self.helplines:
            return f"In a crisis call {LOCAL_EMERGENCY}, or a crisis line where you live."
        return f"In a crisis {self.helplines[0].how} (in {self.place}, day and night), or call {self.emergency_call}."

    @property
    def emergency_call(self) -> str:
        """The emergency number, and what it is elsewhere."""
        return f"{self.emergency} or {LOCAL_EMERGENCY}" if self.emergency else LOCAL_EMERGENCY

    @functools.cached_property
    def emergency_said(self) -> str:
        """A regular expression for the emergency number or service, in a normalised sentence."""
        return "|".join([*map(_spelled, filter(None, [self.emergency])), _ANY_EMERGENCY])

    @functools.cached_property
    def helpline_said(self) -> str:
        """The same for a helpline, by its number or its full name; in the fallback for the words "a crisis line"."""
        return _said(self.helplines)

    @functools.cached_property
    def suicide_line_said(self) -> str:
        """The same for a helpline that is there for suicide."""
        return _said([line for line in self.helplines if line.serves == "suicide"])

    def misdials(self, sentence: str) -> bool:
        """Whether a normalised sentence sends the client to a number that stands in no locale's table."""
        dialled = (_digits(match["number"]) for match in _DIALLED.finditer(sentence))
        return any(number not in _known_numbers() for number in dialled)


def resources(locale: str, knob: str = "locale") -> Resources:
    """The helplines of `locale`; "en" is the fallback, without numbers. ValueError for a locale that is not listed, by
    the setting `knob` that names it."""
    table = _table()
    if locale not in table:
        raise ValueError(
            f'{knob} must be one of {", ".join(sorted(table))}, got {locale!r}: use "en", which names '
            "no number, or add the locale to rewards/resources.toml"
        )
    return table[locale]


def locales() -> tuple[str, ...]:
    """Every locale of the table."""
    return tuple(_table())


@functools.cache
def _table() -> dict[str, Resources]:
    return {locale: read_resources(locale, row) for locale, row in tomllib.loads(TABLE.read_text("utf-8")).items()}


def read_resources(locale: str, row: dict[str, Any]) -> Resources:
    """One locale's row, as in the table or in a saved `guard.json`."""
    return Resources(locale, **{**row, "helplines": tuple(Helpline(**line) for line in row["helplines"])})


@functools.cache
def _known_numbers() -> frozenset[str]:
    return frozenset(_digits(number) for r in _table().values() for number in _numbers(r))


def _numbers(r: Resources) -> Iterable[str]:
    yield r.emergency
    for line in r.helplines:
        yield from (line.call, line.text)


def _said(lines: Sequence[Helpline]) -> str:
    numbers = [_spelled(number) for line in lines for number in (line.call, line.text) if number]
    names = [re.escape(normalise(line.name)) for line in lines]
    return "|".join(dict.fromkeys([*numbers, *names])) or _ANY_HELPLINE


def _digits(number: str) -> str:
    """A number without its grouping, and without North America's leading 1."""
    digits = re.sub(r"\D", "", number)
    return digits[1:] if len(digits) == 11 and digits[0] == "1" else digits


def _spelled(number: str) -> str:
    """A number however it is grouped: "1-800-799-7233", "1 800 7997233", "800-799-7233"."""
    digits = _digits(number)
    country = r"(?:1[ .-]?)?" if len(digits) == 10 else ""
    return rf"(?<!\d){country}" + r"[ .-]?".join(digits) + r"(?!\d)"
