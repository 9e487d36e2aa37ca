"""WordNet for METEOR's synonyms, from a folder that the user names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def open_wordnet(folder: Path, knob: str = "rewards.meteor.wordnet") -> Any:
    """NLTK's reader of the WordNet in `folder` (with data.noun, as Debian's /usr/share/wordnet) or in its corpora/wordnet.

    NLTK (3.10) opens only what lies on its own search path, so the folder is put there; and to line up other languages it
    looks for a second WordNet on that path, which METEOR does not need. Raises ValueError, naming the setting `knob`, when
    there is no whole WordNet.
    """
    import nltk.data
    from nltk.corpus.reader import WordNetCorpusReader

    class OneWordNet(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """No other version."""

    found = [place for place in (folder, folder / "corpora" / "wordnet") if (place / "data.noun").is_file()]
    if not found:
        raise ValueError(
            f"{knob} must be a folder with data.noun, or NLTK data with corpora/wordnet, got {str(folder)!r}: "
            "correct it, or ask for meteor_nosyn"
        )
    place = str(found[0].resolve())
    if place not in nltk.data.path:
        nltk.data.path.append(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no other languages
            return OneWordNet(place, None)
    except (OSError, LookupError, ValueError, AssertionError) as error:  # a file missing, or cut short
        raise ValueError(
            f"{knob} must hold a whole WordNet 3, {place} does not ({type(error).__name__}: {error}): "
            "install it again, or ask for meteor_nosyn"
        ) from error
