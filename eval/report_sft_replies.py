"""Which sampled replies of a supervised run the report shows: the same prompts early, at the best validation and last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.collapse import collapse_figures
from eval.report_sft_course import Course, perplexity
from eval.run_directory import Sample
from rewards.words import normalise, words

SHOWN = 4  # prompts in the open; the others fold


@dataclass(frozen=True)
class Said:
    """A sampled reply, its length, what is poor about it, and the perplexity of the validation that it belongs to."""

    step: int
    reply: str
    words: int
    marks: tuple[str, ...]
    perplexity: float


@dataclass(frozen=True)
class Story:
    """One prompt, and the reply to it at each stage."""

    prompt: Sample
    replies: tuple[tuple[str, Said], ...]


def sample_stories(samples: Mapping[int, Sequence[Sample]], course: Course) -> tuple[list[Story], list[Story]]:
    """Return the stories of a few prompts, evenly spread over those that were asked, and of all the others.

    Stages are those of `Course.stages` whose replies are on file.
    """
    losses = dict(course.losses.tolist())
    stages = {step: name for step, name in course.stages().items() if step in samples}
    said: dict[str, list[tuple[str, Said]]] = {}
    prompts: dict[str, Sample] = {}
    for step, name in stages.items():
        copies = Counter(normalise(sample.reply) for sample in samples[step])
        for sample in samples[step]:
            prompts.setdefault(sample.prompt_id, sample)
            marks = poor(sample.reply, copies[normalise(sample.reply)] - 1)
            reply = Said(step, sample.reply, len(words(sample.reply)), marks, perplexity(losses[step]))
            said.setdefault(sample.prompt_id, []).append((name.capitalize(), reply))
    stories = [Story(prompt, tuple(said[name])) for name, prompt in prompts.items()]
    chosen = {i * len(stories) // SHOWN for i in range(SHOWN)} if stories else set()
    return [stories[i] for i in sorted(chosen)], [s for i, s in enumerate(stories) if i not in chosen]


def poor(reply: str, others: int) -> tuple[str, ...]:
    """Name what is stereotyped about a reply that `others` of the same validation repeat."""
    if not words(reply):
        return ("no word",)
    same = (f"same text as {others} other{'s' * (others > 1)}",) if others else ()
    return (*same, *(("stock phrase",) if collapse_figures([reply])["template_rate"] else ()))
