"""The folder of a fitted head: written whole or not at all, the same bytes for the same fit."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.head_features import Floats
from rewards.head_scores import Probabilities, Rows, reliability
from rewards.heads import CARD, WEIGHTS
from rewards.softmax_regression import Fit

MODEL_CARD, PLOT = "MODEL_CARD.md", "reliability.png"
_PURPOSE = {
    "emotion": (
        "Reads which emotion a text shows, for the reward term `emotion_class` and its accuracy.",
        "Trained on comments of an internet forum, not on counselling: what a text shows there is not what a person feels. "
        "Not for diagnosis, triage, or any decision about a person.",
    ),
    "act": (
        "Reads the dialogue act of a therapist's turn, for the reward terms `act` and `reader`.",
        "It sees a turn without what came before; acts with few examples are read badly. Not for judging therapists.",
    ),
    "empathy": (
        "Reads how strongly a reply shows one mechanism of empathy (0 none, 1 weak, 2 strong), for the reward term `empathy`.",
        "It knows the wording of peer support on a forum. It measures expressed empathy, not whether anybody felt understood.",
    ),
    "crisis": (
        "Hears danger in a client's words beside the rules of `rewards.crisis`; either one raises the tier.",
        "It misses danger and hears some where there is none. English only; it reads sentences and pairs of them, one without "
        "marks as a whole, and knows nothing of who said what before; written examples, not clinical records. Never the only "
        "safeguard, and never a reason to withhold care.",
    ),
}
_INTERVALS = {"crisis": "of shares with their rows beside them Wilson's, 95 %; of the rest the "}
_MARK = 60  # pixels an inch
TEMPERED = {"before": "before the temperature", "after": "after the temperature"}
"""The two models whose calibration a card compares, as `rewards.head_scores.scores` names them."""


@dataclass(frozen=True)
class Pages:
    """What a folder says of itself: its card, and the tables of MODEL_CARD.md as (title, header, rows)."""

    card: Mapping[str, Any]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]


def check_free(out: str) -> Path:
    """The folder to write. Raises ValueError when none is named, or when it holds something."""
    folder = Path(out).expanduser()
    if not out or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        state = "holds something" if out else "names none"
        raise ValueError(f"out must be a new or an empty folder, {out!r} {state}; give --out FOLDER")
    return folder


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` (names relative to `out`) aside, then rename: nobody ever reads half of them."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    os.replace(partial, out)


def head_files(
    fit: Fit,
    vector: Floats,
    pages: Pages,
    before_NC: Probabilities,
    after_NC: Probabilities,
    y_N: Rows,
    models: Mapping[str, str] = TEMPERED,
) -> dict[str, bytes]:
    """The four files of one head. `vector` tells its encoder; the probabilities, of the two `models` in their order, are those
    of the held-out rows."""
    from safetensors.numpy import save

    arrays = {"weight": fit.weight_CF, "bias": fit.bias_C, "encoder": vector}
    return {
        CARD: json_bytes(pages.card),
        WEIGHTS: save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
        MODEL_CARD: model_card(pages).encode(),
        PLOT: reliability_plot(dict(zip(models.values(), (before_NC, after_NC), strict=True)), y_N),
    }


def json_bytes(value: Any) -> bytes:
    """A file of JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


def score_tables(
    scores: Mapping[str, Any], models: Mapping[str, str] = TEMPERED
) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """The tables of `rewards.head_scores.scores`."""
    whole = [
        ("macro-F1", interval(scores["macro_f1"])),
        ("accuracy", interval(scores["accuracy"])),
        (f"accuracy of always saying {str(scores['majority_label'])!r}", interval(scores["majority_accuracy"])),
        *((f"calibration error, {title}", interval(scores[f"ece_{name}"])) for name, title in models.items()),
    ]
    labels = [
        (label, *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")), str(row["support"]))
        for label, row in scores["by_label"].items()
    ]
    return [
        (f"Held-out rows ({scores['rows']})", ("score", "value [95 % interval]"), whole),
        ("By label", ("label", "precision", "recall", "F1", "rows"), labels),
    ]


def interval(score: Mapping[str, float]) -> str:
    """A score for people."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def model_card(pages: Pages) -> str:
    """MODEL_CARD.md."""
    card = pages.card
    purpose, limits = _PURPOSE[card["kind"]]
    data, encoder = card["data"], card["encoder"]
    counts = ", ".join(f"{split} {count}" for split, count in data["rows"].items())
    left_out = "; ".join(f"{why}: {count}" for why, count in data["left_out"].items() if count)
    files = "".join(f"- `{name}` sha256 `{sha}`\n" for name, sha in data["files"].items())
    tables = "\n".join(f"## {title}\n\n{_table(header, rows)}" for title, header, rows in pages.tables)
    return f"""# {card["kind"].capitalize()} head

{purpose} Research software; not a substitute for care.

**Not for:** {limits}

{tables}
Intervals: {_INTERVALS.get(card["kind"], "")}2.5th to 97.5th percentile of {card["resamples"]} bootstrap samples of the \
held-out rows, seed {card["seed"]}.

![Reliability]({PLOT})

## How it was made

`{card.get("command", f"attune fit {card['kind']} --data FOLDER --out FOLDER")}`

One softmax layer ({len(card["labels"])} labels: {", ".join(card["labels"])}) on frozen features of the encoder \
`{encoder["path"]}` ({encoder["width"]} wide), classes weighted alike. {card["chosen"]} Strength {card["strength"]:g}, \
temperature {card["temperature"]:g}.

Licence of the data: {data["licence"]}. Rows: {counts}. Split: {data["split"]}.{f" Left out: {left_out}." if left_out else ""}

{files}"""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reliability_plot(curves: Mapping[str, Probabilities], y_N: Rows) -> bytes:
    """A PNG: of the rows whose most probable label has this probability, how many are right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=_MARK, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, probability_NC in curves.items():
        told, right, counts = zip(*reliability(probability_NC, y_N), strict=True)
        (line,) = axes.plot(told, right, linewidth=1, label=name)
        axes.scatter(told, right, s=[4 + 200 * count / len(y_N) for count in counts], color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the most probable label", ylabel="share that is right")
    axes.legend(loc="upper left")
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
