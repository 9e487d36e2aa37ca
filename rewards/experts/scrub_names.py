"""Which words are names: a list of frequent first names, and what a name looks like."""

from __future__ import annotations

import re
from importlib.resources import files


def _words(file: str, group: str) -> frozenset[str]:
    """The words, in lower case, of the lines `GROUP: WORD WORD ...` of a file beside this module."""
    lines = files("rewards.experts").joinpath(file).read_text(encoding="utf-8").splitlines()
    return frozenset(
        word for of, _, words in (line.partition(":") for line in lines) if of == group for word in words.split()
    )


# First names that mean nothing else: taken out wherever they stand, in whatever case.
NAMES = _words("first_names.txt", "name")
# First names that are words too (months, virtues, verbs, places): only where something introduces them.
WORDY = _words("first_names.txt", "word")
# Of these, the ones that are capital for another reason.
MONTHS_AND_PLACES = _words("first_names.txt", "month or place")
# What stands where a name might and is none: "I'm so", "my husband always", "Hi there", "Dr appointment".
COMMON = _words("common_words.txt", "common")
PEOPLES = re.compile(r"(?:ian|ean|ish|ese|ist|ic|ing|ed|ly)s?$")  # "I'm Norwegian", "I'm Feeling"
CAPITAL = "[" + "".join(c for c in map(chr, (*range(0x530), *range(0x1E00, 0x1F00))) if c.isupper()) + "]"
TAIL = r"[^\W\d_]*(?:['\u2019](?!(?:s|d|ll|re|ve|m|t)\b)[^\W\d_]+|-[^\W\d_]+)*"
WORD = re.compile(rf"[^\W\d_]{TAIL}")


def is_listed(word: str) -> bool:
    """A first name, or two with a hyphen of which the first is one, in whatever case."""
    return word.casefold() in NAMES or ("-" in word and word.casefold().partition("-")[0] in NAMES)


def may_be_a_name(word: str) -> bool:
    """Whether a word that something introduces as a name can be one."""
    fold = word.casefold()
    if fold in WORDY or is_listed(word):
        return True
    return fold not in COMMON and (word[0].isupper() or PEOPLES.search(fold) is None)


def is_capital_name(word: str) -> bool:
    """Whether a word that stands where a name does is written as one, and is no common word."""
    fold = word.casefold()
    if is_listed(word) or (fold in WORDY and word[0].isupper()):
        return True
    shouted = len(word) > 1 and word.isupper()
    return word[0].isupper() and not shouted and fold not in COMMON


def looks_like_a_name(word: str) -> bool:
    """The same where a people or a feeling would be as likely."""
    fold = word.casefold()
    return is_capital_name(word) and (is_listed(word) or fold in WORDY or PEOPLES.search(fold) is None)
