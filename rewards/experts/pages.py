"""The pages that the service gives, put together from the files in `page`: what they share is written there once.

A file holds parts: the line `<!-- name: words -->` is one of a few words, `<!-- name -->` begins one that goes on to the next
such line. `{name}` stands where a part goes. `<!-- inside: FILE -->` names the frame that a file fills; the outermost frame
has the part `page`, the whole of it.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).with_name("page")
_PART = re.compile(r"<!-- ([a-z-]+)(?:: (.+))? -->")
_PLACE = re.compile(r"\{([a-z-]+)\}")


def page(name: str) -> bytes:
    """The whole page of the file `name`. Raises ValueError for a place that no part fills."""
    parts = _parts(name)
    while "page" not in parts:
        parts = {**_parts(parts.pop("inside")), **parts}

    def filled(text: str) -> str:
        for place in _PLACE.findall(text):
            if place not in parts:
                raise ValueError(f"{name} and its frames must have all the parts they name, have no {place}: write it")
        return _PLACE.sub(lambda place: filled(parts[place[1]]), text)

    return filled(parts["page"]).encode()


def _parts(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = ""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if (part := _PART.fullmatch(line)) is None:
            found[at] += line + "\n"
        else:
            at = part[1]
            found[at] = part[2] or ""
    return {part: text.removesuffix("\n") for part, text in found.items()}
