"""Contacts out of a text: numbers, addresses, links, handles, documents. Those of crisis services stay."""

from __future__ import annotations

import functools
import re
from urllib.parse import urlsplit

from rewards.experts.scrub_names import CAPITAL
from rewards.experts.scrub_rules import before, compiled
from rewards.resources import locales, resources

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = rf"(?:\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}|{_DAY}(?: of)? {_MONTH},?(?: \d{{2,4}})?|{_MONTH} {_DAY}(?:,? \d{{4}})?)"
_STREET = (
    r"(?:street|str|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|pl|way|terrace|square|sq|crescent|close"
    r"|parkway|pkwy|circle|cir|highway|hwy|trail|row|gardens|grove|mews|alley|loop|plaza)"
)
_NO_STREET = (
    r"million|thousand|hundred|minutes?|mins?|hours?|miles?|days?|weeks?|years?|people|in|on|the|of|an?|way|steps?|km?|blocks?"
    r"|times?|more|different|other|and"
)
_STREET_NAME = rf"(?:(?!(?:{_NO_STREET})\b)[\w'.]+ ){{1,3}}{_STREET}"
_UNIT = r"(?:,? ?(?:apt|apartment|unit|suite|ste|flat|room|floor|no|#)\.? ?#?\w{1,5})?"
_PLACE = rf"{CAPITAL}[\w'-]*(?: {CAPITAL}[\w'-]*)*"
_TOWN = rf"(?-i:,? {CAPITAL}[^\W\d_]+(?: {CAPITAL}[^\W\d_]+)?)?(?-i:,? [A-Z]{{2}})?(?:,? \d{{5}}(?:-\d{{4}})?)?"
_URL = r"[^\s<>\[\]]*[^\s<>\[\].,;:!?'\")]"
_SITES = "insta|instagram|ig|snap|snapchat|discord|twitter|tiktok|telegram|whatsapp|skype|kik|facebook|fb|messenger|reddit|steam"
_PAPERS = (
    "ssn|social security|social|passport|driver'?s licen[cs]e|licen[cs]e|insurance|member|patient|policy|case|account|card|student"
    "|employee|medicare|nhs|tax|mrn|booking|claim"
)
_CONTACTS = (  # in this order; where a rule has a group, only the group goes
    ("[email]", r"(?<![\w.+-])[\w.+-]+(?:@| ?[\[(]at[\])] ?)[\w-]+(?:(?:\.| ?[\[(]dot[\])] ?)[\w-]+)+"),
    ("[email]", r"(?<![\w.+-])[\w.+-]{2,} at (?:gmail|yahoo|hotmail|outlook|icloud|protonmail|aol)(?: dot |\.)com\b"),
    (
        "[link]",
        rf"(?:https?://|www\.){_URL}|(?<![\w.@-])(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|co\.uk|org\.uk)\b(?:/{_URL})?",
    ),
    (
        "[id]",
        r"\b(?:born(?: on)?(?: the)?|(?:dob|d\.o\.b\.|date of birth|birthday|birthdate)(?: is|['\u2019]s)?(?: on)?:?) "
        rf"(?P<only>{_DATE})",
    ),
    ("[id]", r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"),  # social security
    (
        "[id]",
        r"\b(?-i:[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?|[A-Z]{2}(?: ?\d{2}){3} ?[A-D])\b",
    ),  # accounts, national insurance
    ("[id]", r"(?<!\d)(?:(?:\d{4}[ -]){3}\d{1,7}|\d{4}[ -]\d{6}[ -]\d{5}|\d{13,19})(?!\d)"),  # cards
    ("[id]", r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"),  # internet
    (
        "[id]",
        rf"\b(?:(?:{_PAPERS})(?: (?:number|no\.?|num|id|plate))*|id)(?: is| was|:|#| =| number)*[ #]*"
        r"(?P<only>(?=[\w-]*\d{3})[A-Za-z0-9][\w-]{4,})",
    ),
    ("[address]", rf"\b(?:p\.? ?o\.? box \d+|\d{{1,5}}[a-z]?,? {_STREET_NAME}\b\.?{_UNIT}{_TOWN})"),
    (
        "[address]",
        rf"\b(?-i:{CAPITAL}[^\W\d_]*)(?:straße|strasse|str\.|gasse|allee|platz|weg|gatan|straat|laan) ?\d{{1,4}}[a-z]?\b",
    ),
    (
        "[address]",
        rf"\b\d{{1,4}},? (?:rue|avenue|boulevard|place|chemin|impasse) (?:de |du |des |la |le |l')*(?-i:{_PLACE})",
    ),
    (
        "[address]",
        rf"\b(?-i:(?:Calle|Avenida|Via|Viale|Piazza|Rua|Plaza|ul\.|ulica|улица|ул\.) (?:de |del |la |das |dos )*{_PLACE},?"
        r" (?:n[º°.] ?)?\d{1,4})\b",
    ),
    (
        "[address]",
        r"\b(?-i:[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}|[ABCEGHJ-NPRSTVXY]\d[A-Z] ?\d[A-Z]\d|[A-Z]{2},? \d{5}(?:-\d{4})?)\b",
    ),
    ("[address]", r"\b(?:zip ?code|zip|post ?code|plz)(?: is|:)? (?P<only>[A-Z]{0,2}\d[\dA-Z]{2,4}(?: \d[A-Z]{2})?)\b"),
    ("[handle]", r"(?<![\w@.])@[A-Za-z0-9_](?:[\w.]*\w)?|\bu/[\w-]{3,}|\b\w{2,}#\d{4}\b"),
    (
        "[handle]",
        rf"\b(?:{_SITES})(?: (?:handle|user ?name|user|name|id|account|tag|is))*(?:: ?| )(?P<only>(?=\w*(?:[._]\w|\d))[\w.]*\w)",
    ),
    ("[handle]", r"\b(?:handle|user ?name|gamertag|screen ?name)(?: is|:) ?(?P<only>[\w.]*\w)"),
)
_NUMBER = re.compile(r"(?<![\w.,:/$€£#-])(?:\+|\(\+?)?\d(?:[ ().\-\u2013/]{0,2}\d){5,15}(?![\w%])(?!,\d)")
_ASKS_TO_CALL = re.compile(
    r"\b(?:call|text|phone|cell|mobile|number|whatsapp|dial|ring|tel|telephone|reach|fax|contact)\b\W*(?:\w+\W+){0,4}$",
    re.I,
)
_PHONE_SHAPES = {
    (3, 3, 4),
    (3, 4),
    (10,),
    (1, 3, 3, 4),
    (11,),
    (4, 3, 3),
    (5, 5),
    (3, 7),
    (3, 3, 3),
    (4, 6),
    (5, 6),
    (2, 4, 4),
}
_OTHER_HELPLINES = (
    "800-273-8255", "888-628-9454", "800-656-4673", "866-488-7386", "800-950-6264", "800-222-1222", "0800 1111", "0800 1110111",
    "0800 1110222", "0800 58 58 58", "0800 068 4141", "0808 800 5000",
)  # fmt: skip
_OTHER_HELP_PAGES = (
    "suicidepreventionlifeline.org",
    "findahelpline.com",
    "befrienders.org",
    "thetrevorproject.org",
    "rainn.org",
)


def without_contacts(text: str) -> str:
    for put, rule in _CONTACTS:
        text = compiled(rule, re.I).sub(functools.partial(_put, put), text)
    parts = _helplines().split(text)  # their numbers stand at the odd places
    return "".join(_NUMBER.sub(_phone, part) if i % 2 == 0 else part for i, part in enumerate(parts))


def _put(put: str, match: re.Match[str]) -> str:
    if put == "[link]" and _helps(match.group()):
        return match.group()
    group = "only" if "only" in match.re.groupindex else 0
    start, end = (at - match.start() for at in match.span(group))
    return match.group()[:start] + put + match.group()[end:]


def _helps(link: str) -> bool:
    host = urlsplit(link if "//" in link else f"//{link}").hostname or ""
    return any(host == page or host.endswith(f".{page}") for page in _help_pages())


@functools.cache
def _help_pages() -> frozenset[str]:
    pages = (line.source for locale in locales() for line in resources(locale).helplines)
    return frozenset([*_OTHER_HELP_PAGES, *((urlsplit(page).hostname or "").removeprefix("www.") for page in pages)])


@functools.cache
def _helplines() -> re.Pattern[str]:
    """The numbers of crisis services that are as long as a phone number, however they are grouped."""
    lines = (line for locale in locales() for line in resources(locale).helplines)
    numbers = [*_OTHER_HELPLINES, *(number for line in lines for number in (line.call, line.text))]
    digits = {re.sub(r"^1(?=\d{10}$)|^0|\D", "", re.sub(r"\D", "", number)) for number in numbers}
    spelled = "|".join(
        r"[ .()\u2013-]{0,2}".join(number) for number in sorted(digits, key=len, reverse=True) if len(number) > 5
    )
    return re.compile(rf"((?<![\d-])\(?(?:\+?\d{{1,3}}[ .)\u2013-]{{0,2}})?\(?0?(?:{spelled})(?![\d-]))")


@functools.cache
def _help_codes() -> frozenset[str]:
    """The short numbers of emergency and crisis services."""
    found = [resources(locale) for locale in locales()]
    numbers = [number for r in found for line in r.helplines for number in (line.call, line.text)]
    return frozenset(["988", "741741", *(r.emergency for r in found), *numbers])


def _phone(match: re.Match[str]) -> str:
    said = match.group()
    groups = re.findall(r"\d+", said)
    shape = tuple(map(len, groups))
    if all(group in _help_codes() for group in groups):  # "911 988"
        return said
    years = set(shape) == {4} and all(1900 <= int(group) <= 2100 for group in groups)
    counted = max(shape) == 1  # "1 2 3 4 5 6 7": breathing in
    if not 7 <= sum(shape) <= 15 or years or counted or re.fullmatch(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}", said):
        return said
    marked = said[0] in "+(" or said[0] == "0" or _ASKS_TO_CALL.search(before(match.string, match.start())) is not None
    usual = shape in _PHONE_SHAPES and not (shape == (3, 4) and " " in said)
    return "[phone]" if marked or usual else said
