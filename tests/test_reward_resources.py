"""The helplines: what a locale's row says, and what counts as sending somebody there."""

from __future__ import annotations

import re
from datetime import date

import pytest

from rewards.resources import LOCAL_EMERGENCY, Resources, locales, resources
from rewards.words import normalise

NUMBERED = [locale for locale in locales() if locale != "en"]


def said(pattern: str, text: str) -> bool:
    return re.search(pattern, normalise(text)) is not None


def test_the_locales_that_are_served() -> None:
    """The table knows seven English-speaking countries and a fallback, and every row is whole."""
    assert {"en-US", "en-GB", "en-CA", "en-AU", "en-IN", "en-NZ", "en-IE", "en"} <= set(locales())
    for locale in NUMBERED:
        row = resources(locale)
        assert row.locale == locale and row.place and row.emergency.isdigit()
        first = row.helplines[0]
        assert (first.hours, first.serves) == ("24/7", "suicide"), "fixed texts promise day and night"
        for line in row.helplines:
            assert line.name and line.hours and line.source.startswith("https://") and (line.call or line.text)
            assert line.serves in ("suicide", "violence", "substances")


@pytest.mark.parametrize("locale", locales())
def test_when_a_row_was_checked_is_a_day_or_never(locale: str) -> None:
    """`checked` says a day, in ISO form and not in the future, or "never"."""
    checked = resources(locale).checked
    assert checked == "never" or date.fromisoformat(checked) <= date.today()


def test_an_unknown_locale_is_refused_with_those_that_are_known() -> None:
    """The error names the setting, the value, every known locale and what to do."""
    with pytest.raises(
        ValueError, match=r"rewards\.crisis\.locale must be one of .*en-GB.*got 'fr-FR'.*\"en\""
    ) as told:
        resources("fr-FR", "rewards.crisis.locale")
    assert all(locale in str(told.value) for locale in locales())


@pytest.mark.parametrize("locale", locales())
def test_help_holds_wherever_the_reader_is(locale: str) -> None:
    """The sentence of help gives the locale's first helpline and emergency number, and the local one for readers elsewhere."""
    row = resources(locale)
    assert LOCAL_EMERGENCY in row.help
    assert row.emergency in row.help
    if locale == "en":
        assert not re.search(r"\d", row.help) and "crisis line" in row.help
    else:
        assert row.helplines[0].how in row.help and row.place in row.help


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("en-US", "call 988"),
        ("en-US", "call 9-8-8"),
        ("en-US", "the hotline is 1 800 799 7233"),
        ("en-US", "18007997233"),
        ("en-US", "800-799-7233"),
        ("en-GB", "ring the Samaritans"),
        ("en-GB", "ring 116123"),
        ("en-AU", "call 131114"),
        ("en-NZ", "text 1737"),
        ("en", "a crisis line where you live"),
    ],
)
def test_a_helpline_is_known_however_it_is_written(locale: str, text: str) -> None:
    """Grouping of digits, and name instead of number, make no difference."""
    assert said(resources(locale).helpline_said, text)


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("en-US", "I have 1988 reasons, room 9881"),
        ("en-US", "ring the Samaritans on 116 123"),
        ("en-GB", "call 988"),
        ("en-US", "a crisis line"),
        ("en", "call 988"),
    ],
)
def test_other_numbers_are_no_helpline_of_the_locale(locale: str, text: str) -> None:
    """Digits inside other numbers, and another country's helplines, do not count."""
    assert not said(resources(locale).helpline_said, text)


def test_the_emergency_number_is_the_locales() -> None:
    """911 is for the US and 999 for the UK; the words "local emergency number" hold everywhere."""
    us, gb = resources("en-US"), resources("en-GB")
    assert said(us.emergency_said, "call 911") and not said(us.emergency_said, "call 999")
    assert said(gb.emergency_said, "call 999") and not said(gb.emergency_said, "call 911")
    assert all(said(resources(x).emergency_said, f"call {LOCAL_EMERGENCY}") for x in locales())


@pytest.mark.parametrize(
    ("invents", "text"),
    [
        (True, "Please call 1-800-555-0199 now."),
        (True, "Text the number 55512 today."),
        (False, "Please call 988 and press 1."),
        (False, "Please call 800-799-7233 today."),
        (False, "In the UK call 116 123, in the US call or text 988."),
        (False, "Call me names for 20 years and see."),
        (False, "You called 3 times."),
    ],
)
def test_a_number_of_no_table_is_an_invention(invents: bool, text: str) -> None:
    """A number to dial that stands in no locale's row is said to be one; other countries' are not inventions."""
    assert resources("en-US").misdials(normalise(text)) is invents


def test_how_says_what_to_do() -> None:
    """One number for both is said once; a helpline by another name is named."""
    found: dict[str, Resources] = {locale: resources(locale) for locale in ("en-US", "en-GB", "en-NZ")}
    assert found["en-US"].helplines[0].how == "call or text 988"
    assert found["en-GB"].helplines[0].how == "call Samaritans on 116 123"
    assert found["en-NZ"].helplines[0].how == "call or text 1737"
