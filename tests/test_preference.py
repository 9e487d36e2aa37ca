"""The preference model: what it is fitted to, what it learns and admits, how it pays, what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards.config import EncoderConfig, PreferenceConfig, RewardsConfig
from rewards.encoder import SentenceEncoder, encoder_source
from rewards.fit_preference import fit_preference, fit_preference_command
from rewards.preference import Preference
from rewards.preference_features import FEATURE_SETS, Sight, embedded, texts_of
from rewards.preference_measures import Held, calibration_error, spearman
from rewards.preference_ridge import ridit
from rewards.rated_replies import RatedReply, RatedSplits, read_ratings, split_by_group, starred
from rewards.workbench import Workbench
from rollout.types import Dialogue, Speaker, Turn
from tests.reward_replies import prompt, reply

ESCONV = Path(__file__).parents[2] / "shared" / "data" / "esconv" / "ESConv.json"
SOURCE = {"files": {"ratings.jsonl": "0" * 64}, "licence": "written for the test"}
SAID = (
    "I lost my job last week.",
    "My mother does not speak to me.",
    "I cannot sleep at all.",
    "He left without a word.",
)
WARM = (
    "I am so sorry that you are going through this.",
    "That sounds painful and lonely.",
    "It makes sense that you feel hurt.",
    "I can hear how much this matters to you.",
    "You are carrying a great deal on your own.",
    "Thank you for trusting me with this.",
)
COLD = (
    "Everybody has problems like these.",
    "You should simply stop thinking about it.",
    "That is really not a big deal.",
    "You only have yourself to blame.",
    "Other people have it far worse.",
    "Get over it and move on now.",
)
STRANGE = (
    "def main(argv): return {key: value for key, value in argv.items()}",
    "Preheat the oven to 220 degrees and fold the egg whites under the flour.",
    "zxqv wlkj pqow mnbv zxcv lkjh qpwo",
    "The central bank raised its key interest rate by 25 basis points on Thursday.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "Parallel ports were replaced by USB 2.0 in most printers after 2003.",
)


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def warmth(groups: int, *, seed: int = 0) -> list[RatedReply]:
    """Four replies in each dialogue; the more of a reply's two sentences are warm, the better it is rated."""
    draw = random.Random(seed)
    rated = []
    for group in range(groups):
        for _ in range(4):
            pools = [draw.choice((WARM, COLD)), draw.choice((WARM, COLD))]
            score = 0.2 + 0.3 * sum(pool is WARM for pool in pools) + draw.uniform(-0.1, 0.1)
            text = " ".join(draw.choice(pool) for pool in pools)
            history = (Turn(Speaker.CLIENT, draw.choice(SAID)),)
            rated.append(RatedReply(f"d{group:03d}", history, text, score, draw.choice(("grief", "work"))))
    return rated


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(EncoderConfig())


@pytest.fixture(scope="module")
def fit(encoder: SentenceEncoder) -> Callable[..., dict[str, Any]]:
    """Fits with the sizes of a test, and returns the card."""

    def run(replies: Sequence[RatedReply], out: Path, seed: int = 0, draws: int = 100) -> dict[str, Any]:
        splits = split_by_group(replies, seed=1, share=0.25)
        sizes = {"members": 5, "seed": seed, "draws": draws}
        return fit_preference(splits, encoder, EncoderConfig(), out, **sizes, source=SOURCE, say=quiet)

    return run


@pytest.fixture(scope="module")
def fitted(fit: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the card of a fit to `warmth`."""
    out = tmp_path_factory.mktemp("preference") / "model"
    return out, fit(warmth(60), out)


def term(folder: Path, encoder: SentenceEncoder, beta: float = 1.0, **knobs: Any) -> Preference:
    """The term, with the encoder that is loaded already."""
    preference = PreferenceConfig(weight=1, model=str(folder), beta=beta)
    bench = Workbench(RewardsConfig(preference=preference, encoder=EncoderConfig(**knobs)))
    bench.__dict__["encoder"] = encoder
    return Preference(bench)


def test_a_known_preference_is_recovered(fitted: tuple[Path, dict[str, Any]]) -> None:
    """Where warmth alone is rated, held-out dialogues are ordered by it, better than by length or without the reply."""
    report = fitted[1]["report"]
    assert report["arms"]["model"]["spearman"]["low"] > 0.7
    assert report["arms"]["model"]["within"]["low"] > 0.7
    assert report["arms"]["model"]["pairwise"]["low"] > 0.7
    assert report["beats_length"] and report["beats_blind"]
    assert report["sway"] > 0.1
    assert report["arms"]["constant"]["spearman"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "better than the length" in (fitted[0] / "MODEL_CARD.md").read_text().splitlines()[2]


def test_nothing_is_found_where_nothing_is_and_the_card_says_so(
    fit: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """With the scores dealt out anew the interval of Spearman's correlation covers 0, and the card begins with it."""
    rated = warmth(60)
    scores = [one.score for one in rated]
    random.Random(5).shuffle(scores)
    card = fit([replace(one, score=score) for one, score in zip(rated, scores, strict=True)], tmp_path / "model")
    found = card["report"]["arms"]["model"]["spearman"]
    assert found["low"] <= 0 <= found["high"]
    assert not card["report"]["beats_length"]
    assert (
        (tmp_path / "model" / "MODEL_CARD.md")
        .read_text()
        .splitlines()[2]
        .startswith("**On held-out dialogues it does not")
    )


def test_the_members_disagree_about_what_nobody_rated(
    fitted: tuple[Path, dict[str, Any]], encoder: SentenceEncoder
) -> None:
    """On texts far from the ratings the std is half as large again as on new dialogues of their kind, and above their
    median without exception."""
    preference = term(fitted[0], encoder)
    known = [reply(one.reply, prompt(one.history[0].text)) for one in warmth(20, seed=9)]
    strange = [reply(text, prompt(SAID[0])) for text in STRANGE]
    usual, odd = ([score.notes["std"] for score in preference.score(some)] for some in (known, strange))
    assert np.mean(odd) > 1.5 * np.mean(usual)
    assert min(odd) > np.median(usual)


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0, 100.0])
def test_the_term_pays_mean_minus_beta_std(
    beta: float, fitted: tuple[Path, dict[str, Any]], encoder: SentenceEncoder
) -> None:
    """The value is clip(mean - beta * std, 0, 1) of what the notes say, and mean and std do not depend on beta."""
    replies = [reply(text, prompt(SAID[1])) for text in (*WARM, *COLD)]
    paid, plain = term(fitted[0], encoder, beta).score(replies), term(fitted[0], encoder, 0).score(replies)
    assert [s.value for s in paid] == [min(1, max(0, s.notes["mean"] - beta * s.notes["std"])) for s in plain]
    assert all(s.notes["std"] > 0 for s in plain)
    assert len({s.value for s in plain}) == len(replies)


def test_warm_replies_are_paid_more_whoever_stands_beside_them(
    fitted: tuple[Path, dict[str, Any]], encoder: SentenceEncoder
) -> None:
    """Each warm reply earns more than each cold one; a reply earns the same alone; an empty one earns 0."""
    preference = term(fitted[0], encoder, 0)
    warm, cold = ([s.value for s in preference.score([reply(text) for text in pool])] for pool in (WARM, COLD))
    assert min(warm) > max(cold)
    encoder.forget()
    mixed = preference.score([reply(""), reply(WARM[0]), reply("  ")])
    assert [mixed[0].value, mixed[2].value] == [0.0, 0.0]
    assert mixed[1].value == pytest.approx(warm[0], abs=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_model(
    fitted: tuple[Path, dict[str, Any]], fit: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Every file of the folder is the same byte for byte when the fit is run again; another seed changes the weights."""
    fit(warmth(60), tmp_path / "again")
    fit(warmth(60), tmp_path / "other", seed=1, draws=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing is left half-written
    names = sorted(path.name for path in fitted[0].iterdir())
    assert names == ["MODEL_CARD.md", "calibration.png", "card.json", "model.safetensors"]
    assert all((tmp_path / "again" / name).read_bytes() == (fitted[0] / name).read_bytes() for name in names)
    first, other = ((folder / "model.safetensors").read_bytes() for folder in (fitted[0], tmp_path / "other"))
    assert first != other


def test_a_folder_is_used_with_its_own_encoder_only(
    fitted: tuple[Path, dict[str, Any]], encoder: SentenceEncoder, tmp_path: Path
) -> None:
    """An encoder of the same width with other weights is refused, and so are other max_tokens; the same encoder in
    another folder is not."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = encoder_source("minilm")
    model = AutoModel.from_pretrained(source)
    for name, nudge in (("same", 0.0), ("other", 0.05)):
        with torch.no_grad():
            model.embeddings.word_embeddings.weight += nudge * torch.randn(
                384, generator=torch.Generator().manual_seed(0)
            )
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / name)
    same, other = (SentenceEncoder(EncoderConfig(path=str(tmp_path / name))) for name in ("same", "other"))
    assert term(fitted[0], same, path=str(tmp_path / "same")).score([reply(WARM[0])])[0].value > 0
    with pytest.raises(ValueError, match=r"fitted with, 'minilm' .*other', which gives other vectors|fit again"):
        term(fitted[0], other, path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"max_tokens 128.*max_tokens 64"):
        term(fitted[0], encoder, max_tokens=64)


@pytest.mark.parametrize("damage", ["gone", "card.json", "model.safetensors", "kind", "members"])
def test_a_folder_that_is_no_preference_model_is_refused(
    damage: str, fitted: tuple[Path, dict[str, Any]], encoder: SentenceEncoder, tmp_path: Path
) -> None:
    """A missing folder, a cut file, a card of another kind or of other weights: each is refused by the setting's name."""
    folder = tmp_path / "model"
    if damage != "gone":
        folder.mkdir()
        for path in fitted[0].iterdir():
            content = path.read_bytes()
            (folder / path.name).write_bytes(content[: len(content) // 2] if path.name == damage else content)
    if damage in ("kind", "members"):
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, damage: "act" if damage == "kind" else 7}))
    with pytest.raises(ValueError, match=r"rewards\.preference\.model '.*model'.* fit "):
        term(folder, encoder)


def test_no_dialogue_is_in_two_splits() -> None:
    """`split_by_group` deals whole groups, all of them, the same for a seed and in any order; a dialogue in two is refused."""
    rated = warmth(40)
    splits = split_by_group(rated, seed=3)
    parts = [{one.group for one in split} for split in vars(splits).values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert sorted(map(str, (*splits.train, *splits.valid, *splits.test))) == sorted(map(str, rated))
    again = split_by_group(reversed(rated), seed=3)
    assert [{one.group for one in split} for split in vars(again).values()] == parts
    with pytest.raises(ValueError, match="'d000' is in train and test"):
        RatedSplits(tuple(rated[:20]), tuple(rated[20:40]), (*rated[:4], *rated[40:]))
    with pytest.raises(ValueError, match="valid split must hold rated replies of two dialogues"):
        RatedSplits(tuple(rated[:20]), (), tuple(rated[20:]))


def test_a_star_rates_what_the_therapist_said_since_the_star_before() -> None:
    """Adjacent turns are one reply; each reply since the last star gets the next one, with all before it as history."""
    says = {"T": Speaker.THERAPIST, "C": Speaker.CLIENT}

    def turn(text: str) -> Turn:
        name, _, stars = text.partition("*")
        return Turn(says[name[0]], name, {"stars": stars} if stars else {})

    dialogue = Dialogue(
        "x/1", tuple(map(turn, ("C1", "T1", "T2", "C2", "T3", "C3*5", "C4", "T4", "C5*2", "T5"))), {"problem": "grief"}
    )
    found = [
        (one.group, [t.text for t in one.history], one.reply, one.score, one.problem) for one in starred([dialogue])
    ]
    assert found == [
        ("x/1", ["C1"], "T1 T2", 1.0, "grief"),
        ("x/1", ["C1", "T1 T2", "C2"], "T3", 1.0, "grief"),
        ("x/1", ["C1", "T1 T2", "C2", "T3", "C3 C4"], "T4", 0.25, "grief"),
    ]
    for wrong in ("C1*6", "C1*4.5", "T1*3"):
        with pytest.raises(ValueError, match=r"x/1, turn 1: 'stars' must be a whole number from 1 to 5"):
            list(starred([Dialogue("x/1", (turn(wrong),))]))


def rating(**changes: Any) -> dict[str, Any]:
    row = {"item": "s1#2/0", "rater": "a", "prompt": "I feel low.", "reply": "Tell me more.", "score": 0.5}
    return {key: entry for key, entry in {**row, **changes}.items() if entry is not ...}


def test_a_lenient_rater_does_not_make_a_good_reply(tmp_path: Path) -> None:
    """Two raters who agree but for 0.4 throughout give replies nearly the scores that they would share, whoever rated
    which; the raw scores differ by far more."""
    rows = []
    for item in range(40):
        truth = 0.3 + 0.1 * (item % 5)
        for rater, leniency in (("a", -0.2), ("b", 0.2)):
            if item >= 20 or (item < 10) == (rater == "a"):
                row = {"item": f"s{item}#1", "rater": rater, "reply": f"Reply {item}.", "score": truth + leniency}
                rows.append(rating(**row))
    file = tmp_path / "ratings.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    rated = read_ratings(file)
    assert [one.group for one in rated] == [f"s{item}" for item in range(40)]
    gaps = [abs(one.score - (0.3 + 0.1 * (item % 5))) for item, one in enumerate(rated)]
    assert max(gaps) < 0.06


def test_parquet_and_histories_are_read_and_the_same_words_are_one_reply(tmp_path: Path) -> None:
    """A Parquet row with a history is read as its JSON twin; two items with the same words in one place are one reply with
    the mean score, in the group of the first."""
    told = [{"speaker": "client", "text": "Hi."}, {"speaker": "therapist", "text": "Hello."}]
    rows = [
        rating(prompt=..., history=told, problem="grief", score=0.2),
        rating(prompt=..., history=told, item="s9#1", score=0.6),
        rating(prompt=..., history=told, item="fixed-1", reply="Another.", score=0.4),
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.parquet"):
        first, second = read_ratings(tmp_path / name)
        assert (first.group, first.score, first.problem) == ("s1", pytest.approx(0.4), "grief")
        assert first.history == (Turn(Speaker.CLIENT, "Hi."), Turn(Speaker.THERAPIST, "Hello."))
        assert (second.group, second.reply, second.problem) == ("fixed-1", "Another.", "")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (rating(score=1.2), r"'score' must be a number in \[0, 1\], is 1.2"),
        (rating(score=True), "'score' must be a number"),
        (rating(score=...), "'score' must be a number"),
        (rating(score=float("nan")), "'score' must be a number"),
        (rating(reply=" "), "'reply' must be a text, is ' '"),
        (rating(rater=...), "'rater' must be a text, is None"),
        (rating(item=3), "'item' must be a text, is 3"),
        (rating(counts="no"), "'counts' must be true or false, is 'no'"),
        (rating(prompt=...), "either 'prompt' or 'history'"),
        (rating(history=[{"speaker": "client", "text": "x"}]), "either 'prompt' or 'history'"),
        (rating(prompt=..., history=[]), "'history' must be a list of turns"),
        (rating(prompt=..., history=[{"speaker": "doctor", "text": "x"}]), "turn 1: must be an object whose 'speaker'"),
        (rating(prompt=..., history=[{"speaker": "client"}]), "turn 1: 'text' must be a text"),
        (rating(reply="Other words."), "item 's1#2/0' must be one reply, its words differ from .*line 1"),
        ([1], "must be an object"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(bad: Any, says: str, tmp_path: Path) -> None:
    """Whatever is wrong with the third line is said with the file's name, the line, the rule and the value."""
    file = tmp_path / "ratings.jsonl"
    file.write_text("\n".join(map(json.dumps, (rating(), rating(rater="b"), bad))))
    with pytest.raises(ValueError, match=rf"ratings\.jsonl line 3.*{says}"):
        read_ratings(file)


def test_files_that_are_no_ratings_are_refused(tmp_path: Path) -> None:
    """Another ending, no file, an empty file, broken JSON and broken Parquet are each refused by name."""
    for name, content in (("a.csv", "x"), ("b.jsonl", "\n"), ("c.jsonl", "{"), ("d.parquet", "nothing")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_ratings(tmp_path / name)
    (tmp_path / "none.jsonl").write_text(json.dumps(rating(counts=False)))
    with pytest.raises(ValueError, match="must hold a rating that counts"):
        read_ratings(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"e\.jsonl"):
        read_ratings(tmp_path / "e.jsonl")


def test_settings_and_folders_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    """No --out, a folder that holds something, two sources, one member: each is refused, and nothing is written."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    out = ["--out", str(tmp_path / "new")]
    for words, says in (
        ([], "out must name the folder"),
        (["--out", str(tmp_path / "full")], "out must be a new or an empty folder"),
        ([*out, "--ratings", "r.jsonl", "--corpus.format", "esconv", "--corpus.path", "x"], "one of the two"),
        ([*out, "--members", "1"], "members must be at least 2"),
        ([*out, "--memebrs", "3"], "did you mean 'members'"),
    ):
        with pytest.raises(ValueError, match=says):
            fit_preference_command(words)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_ratings_without_a_difference_leave_nothing_behind(fit: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """When all scores are the same there is nothing to fit: that is said, and no folder appears."""
    with pytest.raises(ValueError, match=r"all 80 are 0\.5"):
        fit([replace(one, score=0.5) for one in warmth(40)], tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_ridits_are_mid_ranks() -> None:
    """A score's ridit is the share of scores below it and half of those equal to it; unseen scores fall between."""
    ridits = ridit(np.array([0.0, 1.0, 1.0, 0.5]))
    assert ridits(np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])).tolist() == [0.0, 0.125, 0.25, 0.375, 0.75, 1.0]


def test_measures_within_a_dialogue_ignore_who_rates_and_when() -> None:
    """Pairs compare replies of one dialogue, ties half right; `within` is 1 for a prediction that is the rating but for
    each dialogue's level and a trend over its turns, and 0 for the trend alone."""
    score = np.array([0.1, 0.6, 0.3, 0.9, 0.2, 0.5, 0.4, 0.1])
    turn = np.array([1.0, 3.0, 5.0, 7.0, 1.0, 3.0, 5.0, 7.0])
    groups = ["a"] * 4 + ["b"] * 4
    held = Held(score, groups, turn, draws=50, seed=0)
    level = np.repeat([0.0, 5.0], 4)
    shifted = held.measures(score + level + 2 * turn)
    assert shifted.within is not None and shifted.within.value == pytest.approx(1)
    trend = held.measures(turn)
    assert trend.within is not None and trend.within.value == 0
    assert trend.pairwise is not None and trend.pairwise.value == pytest.approx((5 + 2) / 12)
    constant = held.measures(np.full(8, 0.5))
    assert constant.pairwise is not None and (constant.pairwise.value, constant.spearman.value) == (0.5, 0)
    alone = Held(score, list("abcdefgh"), turn, draws=5, seed=0).measures(score)
    assert (alone.pairwise, alone.within, alone.spearman.value) == (None, None, pytest.approx(1))


def test_calibration_error_is_the_distance_of_prediction_and_rating() -> None:
    """It is 0 for the ratings themselves, the shift for shifted ones, and |level - mean rating| for a constant."""
    score = np.linspace(0, 0.8, 40)
    assert calibration_error(score, score) == pytest.approx(0, abs=1e-12)
    assert calibration_error(score + 0.1, score) == pytest.approx(0.1)
    assert calibration_error(np.full(40, 0.5), score) == pytest.approx(0.1)
    assert spearman(np.full(40, 0.5), score) == 0


def test_features_are_what_they_are_called(encoder: SentenceEncoder) -> None:
    """Cosines, counts, marks and turns are those of the reply, the client's last run and the therapist's last run; a
    session that the therapist opens has a client of zeros."""
    history = [
        Turn(Speaker.CLIENT, "One."),
        Turn(Speaker.THERAPIST, "Go on."),
        Turn(Speaker.CLIENT, "I am"),
        Turn(Speaker.CLIENT, "sad."),
    ]
    answers = [(history, "Why is that?"), ([], "Welcome.")]
    sight = Sight(embedded(encoder, texts_of(answers), quiet, chunk=2), encoder.width)
    names = ("words", "client_words", "question", "turns", "near_client", "near_before")
    first, opening = sight.matrix(names, answers)
    why, sad, go = encoder.embed(["Why is that?", "I am sad.", "Go on."]).double().numpy()
    assert first[:4].tolist() == pytest.approx([np.log(4), np.log(4), 1, np.log(4)])
    assert first[4:].tolist() == pytest.approx([why @ sad, why @ go], abs=1e-5)
    assert opening.tolist() == pytest.approx([np.log(2), 0, 0, 0, 0, 0])
    wide = sight.matrix(FEATURE_SETS["interaction"], answers)
    assert wide.shape == (2, 4 * encoder.width + 6)
    assert np.abs(wide[0, 2 * encoder.width : 3 * encoder.width] - why * sad).max() < 1e-5


FIELDS = {
    "arms", "ahead", "problems", "doubt", "doubt_parts", "bins", "predicted", "pull", "tried", "replies", "groups",
    "mean_score", "sway", "beats_length", "beats_blind",
}  # fmt: skip


@pytest.mark.skipif(not ESCONV.is_file(), reason="needs ../shared/data/esconv")
def test_esconv_stars_give_a_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fits to a part of ESConv, says how far it is, and its card has every field."""
    part = json.loads(ESCONV.read_text())[:16]
    (tmp_path / "ESConv.json").write_text(json.dumps(part))
    words = [
        "--corpus.format",
        "esconv",
        "--corpus.path",
        str(tmp_path),
        "--out",
        str(tmp_path / "model"),
        "--members",
        "3",
    ]
    assert fit_preference_command(words) == 0
    said = capsys.readouterr().out
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["report"].keys() == FIELDS
    assert card["report"]["arms"].keys() == {"model", "cautious", "length", "blind", "constant"}
    assert sum(one["replies"] for one in card["report"]["problems"]) == card["report"]["replies"]["test"]
    assert card["source"]["licence"].startswith("CC BY-NC") and len(card["source"]["files"]["ESConv.json"]) == 64
    assert "embedded" in said and "valid Spearman" in said and "against" in said
    assert (tmp_path / "model" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="out must be a new or an empty folder"):
        fit_preference_command(words)
