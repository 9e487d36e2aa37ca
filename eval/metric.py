"""What a metric is: its name, what it needs, which way is better, its unit, and how it is read off replies."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from eval.figures import Measured
from eval.instruments import Instruments, Readings
from eval.pair import Pair

_ROUNDING = 1e-4  # nats: a log-softmax in float32 may end a hair above 0


class Better(enum.StrEnum):
    """Which way a metric improves."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"  # a description, such as length


class Need(enum.StrEnum):
    """What a metric cannot do without."""

    REFERENCE = "a reference"
    EMOTION = "the corpus's emotion of the client"
    ACT = "the corpus's dialogue_act of the therapist's reply"
    WRITTEN_EMOTION = "an emotion that the model wrote before its reply"
    WRITTEN_ACT = "a dialogue_act that the model wrote before its reply"
    LOGPROBS = "log-probs, finite and at most 0"
    OTHERS = "two replies at least"
    WORDNET = "a WordNet folder"
    PREFERENCE = "a preference model"
    JUDGE = "a judge"


@dataclass(frozen=True)
class Metric:
    """One metric. `text` says what it is, with its source; `read` takes the readings of one arm, for which every need is
    met, and the metric's name."""

    name: str
    text: str
    needs: frozenset[Need]
    better: Better
    unit: str
    read: Callable[[Readings, str], Measured]

    def check_settings(self, instruments: Instruments) -> None:
        """Raise ValueError when a setting that the metric needs is not made: before anything was generated."""
        for need in sorted(self.needs & _SETTINGS):
            if complaint := _complaint(need, self.name, [], instruments):
                raise ValueError(f"metric {self.name} needs {need.value}, {complaint}")

    def check(self, pairs: list[Pair], instruments: Instruments) -> None:
        """Raise ValueError when something that the metric needs is not there."""
        for need in filter(self.needs.__contains__, Need):
            if complaint := _complaint(need, self.name, pairs, instruments):
                raise ValueError(f"metric {self.name} needs {need.value}, {complaint}")


def metric(
    read: Callable[[Readings, str], Measured], name: str, *needs: Need, better: Better, unit: str, text: str = ""
) -> Metric:
    """A `Metric` whose text is the docstring of `read`, unless another is given."""
    return Metric(name, text or inspect.getdoc(read) or "", frozenset(needs), better, unit, read)


def _complaint(need: Need, name: str, pairs: list[Pair], instruments: Instruments) -> str:
    """What is wrong and what to do about it; "" when nothing is."""
    if need is Need.WORDNET:
        folder = instruments.config.rewards.meteor.wordnet
        return "" if folder else "rewards.meteor.wordnet is '': name a folder, or ask for meteor_nosyn"
    if need is Need.PREFERENCE:
        folder = instruments.config.rewards.preference.model
        return "" if folder else "rewards.preference.model is '': fit one (attune fit preference), or drop the metric"
    if need is Need.JUDGE:
        judge, criterion = instruments.config.rewards.judge, name.partition("/")[2]
        if not (judge.url and judge.model):
            return "rewards.judge.url or .model is '': name an endpoint, or drop the metric"
        if criterion and criterion not in judge.criteria:
            return f"rewards.judge.criteria are {', '.join(judge.criteria)}: add the criterion, or drop the metric"
        return ""
    if need is Need.OTHERS:
        return "" if len(pairs) > 1 else f"got {len(pairs)}: generate more, or drop the metric"
    if need in _WRITTEN:  # a reply without its label is wrong; a model that never writes one does not take part
        label = _WRITTEN[need]
        wrote = any(label in pair.written for pair in pairs)
        remedy = "evaluate a model with predicted fields, or drop the metric"
        return "" if wrote else f"none of the {len(pairs)} replies has one: {remedy}"
    for pair in pairs:
        if not _HAS[need](pair):
            value = _short(pair.logprobs) if need is Need.LOGPROBS else "''"
            return f"{pair} has {value}: leave that prompt out, or drop the metric"
    return ""


def _logprobs(pair: Pair) -> bool:
    return bool(pair.logprobs) and all(math.isfinite(chance) and chance <= _ROUNDING for chance in pair.logprobs)


def _short(logprobs: tuple[float, ...]) -> str:
    wrong = [chance for chance in logprobs if not (math.isfinite(chance) and chance <= _ROUNDING)]
    return str(wrong[0]) if wrong else "none"


_WRITTEN = {Need.WRITTEN_EMOTION: "emotion", Need.WRITTEN_ACT: "dialogue_act"}
_SETTINGS = frozenset({Need.WORDNET, Need.PREFERENCE, Need.JUDGE})
_HAS: dict[Need, Callable[[Pair], bool]] = {
    Need.REFERENCE: lambda pair: bool(pair.reference.strip()),
    Need.EMOTION: lambda pair: bool(pair.emotion.strip()),
    Need.ACT: lambda pair: bool(pair.labels.get("dialogue_act", "").strip()),
    Need.LOGPROBS: _logprobs,
}
