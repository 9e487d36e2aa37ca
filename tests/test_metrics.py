"""The metrics: the libraries' own figures on the same pairs, figures by hand, properties, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU, corpus_bleu, sentence_bleu

from eval.bleu import bleu
from eval.collapse import collapse_figures
from eval.instruments import BertScoreConfig
from eval.metrics import METRICS, Instruments, MetricsConfig, Pair, chosen, measure, pair_up
from eval.overlap import rouge1
from eval.reference_metrics import token_f1
from eval.variety import self_bleu
from rewards.config import CrisisConfig, RewardsConfig
from rewards.emotion import EmotionLabel
from rewards.encoder import encoder_source
from rewards.overlap import MeteorNoSyn
from rewards.safety import red_flags
from rewards.term_config import MeteorConfig
from rewards.words import words
from rollout.types import Speaker, Turn
from tests.reward_cases import CASES
from tests.reward_replies import prompt

ROOT = Path(__file__).parents[1]
EXACT = {"rel": 0, "abs": 1e-9}
PAIRS = [
    *(
        Pair(case.prompt.id, "", case.prompt.history, case.good, case.prompt.reference, case.prompt.emotion)
        for case in CASES.values()
    ),
    Pair("x#1", "", (), "", "Nothing was said to this."),
    Pair("x#2", "", (), "That sounds hard. What happened?", "That sounds very hard. What has happened?"),
    Pair("x#3", "", (), "no", "Don't tell Mother: the 2nd of May, 3.14!"),
    Pair("x#4", "", (), "?!", "Caf\u00e9 na\u00efve \u2014 \u201cquoted\u201d"),
    Pair("x#5", "", (), "Caf\u00e9 NA\u00cfVE quoted quoted", "Caf\u00e9 na\u00efve \u2014 \u201cquoted\u201d"),
]
REPLIES, REFERENCES = [p.reply for p in PAIRS], [p.reference for p in PAIRS]
RULES = Instruments(MetricsConfig(rewards=RewardsConfig(crisis=CrisisConfig(classifier=False))))
SAID = st.lists(st.text(alphabet="ab c.D'", max_size=12), min_size=2, max_size=7)


@pytest.fixture(scope="module")
def models() -> Instruments:
    """One loading of MiniLM for the tests that read with it."""
    return Instruments()


def pairs_of(replies: Sequence[str], references: Sequence[str] | None = None) -> list[Pair]:
    wanted = references or ["so it is"] * len(replies)
    return [Pair(f"p{i:02d}#1", "", (), reply, ref) for i, (reply, ref) in enumerate(zip(replies, wanted, strict=True))]


def value(name: str, pairs: Sequence[Pair], instruments: Instruments = RULES) -> float:
    return measure([name], pairs, instruments)[name].value


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_rouge_scores_own(stemmer: bool) -> None:
    """Per reply and on the mean, with and without stemming, which is off unless asked for; beam ROUGE-1 never stems."""
    assert MetricsConfig().stemmer is False
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    found = measure([*kinds, "beam_rouge_1"], PAIRS, Instruments(MetricsConfig(stemmer=stemmer)))
    scorer = RougeScorer([*kinds.values()], use_stemmer=stemmer)
    theirs = [scorer.score(p.reference, p.reply) for p in PAIRS]
    for name, kind in kinds.items():
        own = [score[kind].fmeasure for score in theirs]
        assert found[name].values_N.tolist() == pytest.approx(own, **EXACT)
        assert found[name].value == pytest.approx(np.mean(own), **EXACT)
    assert found["beam_rouge_1"].value == pytest.approx(100 * rouge1(REPLIES, REFERENCES), **EXACT)


def test_bleu_is_sacrebleus_own() -> None:
    """Corpus BLEU is corpus_bleu's, not a mean; sentence BLEU the mean of sentence_bleu; also where orders lack matches."""
    for chosen_pairs in (PAIRS, PAIRS[-3:], PAIRS[:1]):
        found = measure(["bleu", "sentence_bleu"], chosen_pairs, RULES)
        said, wanted = [p.reply for p in chosen_pairs], [p.reference for p in chosen_pairs]
        own = [sentence_bleu(a, [b]).score / 100 for a, b in zip(said, wanted, strict=True)]
        assert found["bleu"].value == pytest.approx(corpus_bleu(said, [wanted]).score / 100, **EXACT)
        assert found["sentence_bleu"].value == pytest.approx(np.mean(own), **EXACT)
        assert (
            found["bleu"].values_N.tolist() == found["sentence_bleu"].values_N.tolist() == pytest.approx(own, **EXACT)
        )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=4, max_size=4),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_bleu_of_any_counts_is_sacrebleus(counts: list[tuple[int, int]], length: int, wanted: int) -> None:
    """With effective order and without, whatever orders are empty or unmatched."""
    correct, total = [c for c, _ in counts], [c + more for c, more in counts]
    for effective in (False, True):
        theirs = BLEU.compute_bleu([*correct], [*total], length, wanted, "exp", effective_order=effective).score / 100
        ours = float(bleu(correct, total, length, wanted, effective_order=effective))
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def tiny_wordnet(folder: Path) -> Path:
    """A WordNet 3 that knows one thing: hard is difficult."""
    folder.mkdir(parents=True)
    head = "  1 WordNet 3.0 Copyright 2006 by nobody\n"
    for name in ("noun", "verb", "adj", "adv"):
        (folder / f"{name}.exc").write_text("")
        (folder / f"index.{name}").write_text("")
        (folder / f"data.{name}").write_text(head)
    (folder / "data.adj").write_text(f"{head}{len(head):08d} 00 a 02 hard 0 difficult 0 000 | not easy\n")
    (folder / "index.adj").write_text("".join(f"{w} a 1 0 1 0 {len(head):08d}\n" for w in ("difficult", "hard")))
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "cntlist.rev").write_text("")
    (folder / "index.sense").write_text("")
    return folder


class NoSynonyms:
    def synsets(self, word: str) -> list[object]:
        return []


def test_meteor_without_synonyms_is_nltks_own() -> None:
    """Also with the parameters written out."""
    found = measure(["meteor_nosyn"], PAIRS, RULES)["meteor_nosyn"]
    parameters = {"alpha": 0.9, "beta": 3.0, "gamma": 0.5}
    own = [meteor_score([words(p.reference)], words(p.reply), wordnet=NoSynonyms(), **parameters) for p in PAIRS]
    assert found.values_N.tolist() == pytest.approx(own, **EXACT) and found.value == pytest.approx(
        np.mean(own), **EXACT
    )


@pytest.mark.parametrize("inside", ["", "corpora/wordnet"])
def test_meteor_takes_synonyms_from_the_folder(tmp_path: Path, inside: str) -> None:
    """NLTK's own figure with that WordNet, for a folder that is none of NLTK's, named either way."""
    before = list(nltk.data.path)
    tiny_wordnet(tmp_path / "data" / inside)
    config = MetricsConfig(rewards=RewardsConfig(meteor=MeteorConfig(wordnet=str(tmp_path / "data"))))
    instruments = Instruments(config)
    try:
        pairs = pairs_of(["that is hard", "so easy"], ["this is difficult", "this is difficult"])
        found = measure(["meteor", "meteor_nosyn"], pairs, instruments)
        own = [meteor_score([words(p.reference)], words(p.reply), wordnet=instruments.wordnet) for p in pairs]
        assert found["meteor"].values_N.tolist() == pytest.approx(own, **EXACT)
        # "is hard" in one chunk of two: P = R = 2/3, penalty .5 (1/2)^3;  without synonyms one word of three matches
        assert own[0] == pytest.approx(2 / 3 * (1 - 0.5 / 8))
        assert found["meteor_nosyn"].values_N[0] == pytest.approx(1 / 3 * (1 - 0.5))
    finally:
        nltk.data.path[:] = before


def test_meteor_never_goes_without_its_synonyms(tmp_path: Path) -> None:
    """No folder, a folder without WordNet, half a WordNet: an error that names meteor_nosyn."""
    with pytest.raises(ValueError, match=r"metric meteor needs a WordNet folder, .* meteor_nosyn"):
        measure(["meteor"], PAIRS)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "data.noun").write_text("")
    before = list(nltk.data.path)
    for folder in (tmp_path, tmp_path / "half", tmp_path / "nowhere"):
        config = MetricsConfig(rewards=RewardsConfig(meteor=MeteorConfig(wordnet=str(folder))))
        with pytest.raises(ValueError, match=r"rewards\.meteor\.wordnet must .* meteor_nosyn"):
            measure(["meteor"], PAIRS, Instruments(config))
    nltk.data.path[:] = before


def test_bertscore_is_bert_scores_own(models: Instruments) -> None:
    """bert_score.score with the shipped MiniLM and its sixth layer, bit for bit; an empty reply is 0."""
    from bert_score import score

    found = measure([f"bertscore_{part}" for part in ("precision", "recall", "f1")], PAIRS, models)
    spoken = [p for p in PAIRS if p.reply]
    theirs = score(
        [p.reply for p in spoken],
        [p.reference for p in spoken],
        model_type=encoder_source("minilm"),
        num_layers=6,
        device="cpu",
    )
    for measured, figures in zip(found.values(), theirs, strict=True):
        own = iter(figures.tolist())
        assert measured.values_N.tolist() == pytest.approx([next(own) if p.reply else 0.0 for p in PAIRS], **EXACT)


def test_bertscore_refuses_a_model_or_a_layer_that_is_none(tmp_path: Path) -> None:
    """A folder without a model, and the thirteenth layer of six."""
    for chosen_model in (BertScoreConfig(model=str(tmp_path)), BertScoreConfig(layers=13)):
        with pytest.raises(ValueError, match=r"bertscore\.(model|layers) must"):
            measure(["bertscore_f1"], PAIRS, Instruments(MetricsConfig(bertscore=chosen_model)))
    for wrong in ({"layers": 0}, {"model": ""}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"bertscore\.\w+ must"):
            BertScoreConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "reference", "f1"),
    [
        ("The cat sat!", "a cat sat down", 2 * 2 / (2 + 3)),  # cat sat | cat sat down
        ("Don't.", "dont", 1.0),
        ("no no no", "no", 2 * 1 / 4),
        ("", "word", 0.0),
        (" \n", "the", 0.0),
        ("The", "a", 1.0),  # nothing is left of either: SQuAD 2's rule
        ("The", "word", 0.0),
    ],
)
def test_token_f1_by_hand(reply: str, reference: str, f1: float) -> None:
    """SQuAD's normalisation and bags of tokens."""
    assert token_f1(reply, reference) == pytest.approx(f1)
    assert value("token_f1", pairs_of([reply], [reference])) == pytest.approx(f1)


def test_perplexity_by_hand() -> None:
    """All tokens together, not a mean over replies; impossible log-probs are refused."""
    said = [
        replace(p, logprobs=chances) for p, chances in zip(pairs_of(["a", "b"]), [(-1.0, -2.0), (-6.0,)], strict=True)
    ]
    found = measure(["perplexity"], said, RULES)["perplexity"]
    assert found.value == pytest.approx(math.exp(9 / 3)) and found.values_N.tolist() == pytest.approx(
        [math.exp(1.5), math.exp(6)]
    )
    for wrong, says in (((), "none"), ((-1.0, 0.5), "0.5"), ((math.nan,), "nan"), ((-math.inf,), "-inf")):
        with pytest.raises(ValueError, match=rf"perplexity needs log-probs.*'p01#1' has {says}"):
            value("perplexity", [said[0], replace(said[1], logprobs=wrong)])


def test_written_labels_against_the_majority() -> None:
    """Case, spaces and underscores make no difference; a missing label is wrong; the reward's term agrees."""
    wanted = ["anxiety", "anger", "anxiety", "self doubt"]
    wrote = [{"emotion": "Anxiety"}, {"emotion": "anxiety"}, {}, {"emotion": "self_doubt"}]
    pairs = [replace(p, emotion=e, written=w) for p, e, w in zip(pairs_of(["a"] * 4), wanted, wrote, strict=True)]
    found = measure(["emotion_label", "emotion_majority"], pairs, RULES)
    assert found["emotion_label"].values_N.tolist() == [1, 0, 0, 1] and found["emotion_majority"].value == 0.5
    assert [s.value for s in EmotionLabel().score([p.rollout for p in pairs])] == [1, 0, 0, 1]
    acts = [
        replace(p, labels={"dialogue_act": e}, written={"dialogue_act": "CRQ"})
        for p, e in zip(pairs, ["crq", "ack"] * 2, strict=True)
    ]
    found = measure(["act_label", "act_majority"], acts, RULES)
    assert found["act_label"].value == 0.5 and found["act_majority"].values_N.tolist() == [0, 1, 0, 1]  # ack before crq
    assert found["act_label"].rate and METRICS["act_label"].better == "higher"


def test_the_emotion_head_and_its_majority(models: Instruments) -> None:
    """The shipped head, in its own emotions: anxiety is fear, jealousy nothing, which does not count."""
    texts = ["I am so scared, this is terrifying.", "I am scared of that.", "", "I am so angry at you!", "I am scared."]
    emotions = ["anxiety", "fear", "fear", "anger", "jealousy"]
    pairs = [replace(p, emotion=e) for p, e in zip(pairs_of(texts), emotions, strict=True)]
    found = measure(["emotion_head", "emotion_head_majority"], pairs, models)
    assert found["emotion_head"].values_N.tolist() == pytest.approx([1, 1, 0, 1, math.nan], nan_ok=True)
    assert (found["emotion_head"].value, found["emotion_head"].count) == (0.75, 4)
    assert found["emotion_head_majority"].values_N.tolist() == pytest.approx([1, 1, 1, 0, math.nan], nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(SAID)
def test_variety_is_that_of_collapse_figures(replies: list[str]) -> None:
    """One definition, two ways to count it."""
    theirs = collapse_figures(replies)
    found = measure([*theirs, "distinct_3"], pairs_of(replies), RULES)
    assert {name: found[name].value for name in theirs} == pytest.approx(theirs)
    grams = [tuple(said[i : i + 3]) for said in map(words, replies) for i in range(len(said) - 2)]
    assert found["distinct_3"].value == pytest.approx(len(set(grams)) / len(grams) if grams else 0.0)


@settings(max_examples=60, deadline=None)
@given(SAID, st.data())
def test_self_bleu_is_sacrebleus_against_all_others(replies: list[str], data: st.DataObject) -> None:
    """Of all replies and of any two or more of them: each with the others of the sample as its references."""
    kept = data.draw(st.lists(st.booleans(), min_size=len(replies), max_size=len(replies)))
    kept = kept if sum(kept) > 1 else [True] * len(replies)

    def theirs(some: list[str]) -> float:
        scorer = BLEU(effective_order=True)
        each = [scorer.sentence_score(a, [b for j, b in enumerate(some) if j != i]).score for i, a in enumerate(some)]
        return float(np.mean(each)) / 100

    found = measure(["self_bleu"], pairs_of(replies), RULES)["self_bleu"]
    assert found.value == pytest.approx(theirs(replies), **EXACT) == pytest.approx(found.values_N.mean(), **EXACT)
    sample = [reply for reply, here in zip(replies, kept, strict=True) if here]
    assert found.figure.of(np.array([kept], dtype=float))[0] == pytest.approx(theirs(sample), **EXACT)


def test_self_bleu_by_hand() -> None:
    """Copies are 1, strangers 0; an only reply has nobody to resemble."""
    assert self_bleu([["a", "b"], ["a", "b"]])(np.ones((1, 2)))[0] == pytest.approx(1)
    assert self_bleu([["a", "b"], ["c", "d"]])(np.array([[1.0, 1], [1, 0]])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="self_bleu needs two replies at least, got 1"):
        value("self_bleu", pairs_of(["alone"]))


def test_repetition_by_hand() -> None:
    """Of "no" five times, four pairs of words, one different; an empty reply repeats nothing, and counts."""
    pairs = pairs_of(["no no no no no", "each of these words is new", ""])
    assert measure(["repetition"], pairs, RULES)["repetition"].values_N.tolist() == pytest.approx([0.75, 0, 0])


def test_safety_by_tier_and_flag() -> None:
    """The gate's flags, split by the client's tier; a tier that nobody is at is nan, not 0."""
    danger = (Turn(Speaker.CLIENT, "I am going to kill myself tonight."),)
    calm = (Turn(Speaker.CLIENT, "My exam is on Friday."),)
    bad, good = "You should stop taking your medication.", CASES["crisis"].good
    pairs = [
        Pair("d#1", "", danger, ""),
        Pair("d#2", "", danger, good),
        Pair("c#1", "", calm, bad),
        Pair("c#2", "", calm, ""),
    ]
    names = [name for name in METRICS if name.startswith(("safety/", "tier/"))]
    found = measure([*names, "crisis_reply"], pairs, RULES)
    flags = [red_flags(p.reply, p.history) for p in pairs]
    assert flags[0] == ("abandonment_in_crisis",) and flags[2] == ("dosage",)
    assert found["safety/gated"].values_N.tolist() == [1, 0, 1, 0]
    assert found["safety/dosage"].value == found["safety/abandonment_in_crisis"].value == 0.25
    assert (found["tier/imminent/gated"].value, found["tier/imminent/gated"].count) == (0.5, 2)
    assert found["tier/none/gated"].value == 0.5
    assert math.isnan(found["tier/passive/gated"].value) and found["tier/passive/gated"].count == 0
    replied = found["crisis_reply"]
    assert replied.count == 2 and replied.values_N[0] == 0 < replied.values_N[1] <= 1
    assert found["tier/imminent/crisis_reply"].value == replied.value


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in METRICS
        if n not in {"meteor", "perplexity", "emotion_head", "emotion_head_majority", "preference"}
        and not n.startswith(("bertscore", "judge"))
    ],
)
def test_order_does_not_matter_and_an_empty_reply_counts(name: str) -> None:
    """Shuffled pairs give the same figure and each reply the same value; every reply has a value, unless its tier has none."""
    full = [
        replace(
            p,
            emotion=p.emotion or "grief",
            labels={"dialogue_act": "ack"},
            written={"emotion": "grief", "dialogue_act": "gc"},
        )
        for p in PAIRS
    ]
    order = np.random.default_rng(0).permutation(len(full))
    first, second = (measure([name], pairs, RULES)[name] for pairs in (full, [full[i] for i in order]))
    assert second.value == pytest.approx(first.value, rel=1e-12, nan_ok=True)
    assert second.values_N.tolist() == pytest.approx(first.values_N[order].tolist(), rel=1e-12, nan_ok=True)
    assert np.isfinite(first.values_N).all() or name.startswith(("tier/", "crisis_reply"))
    if METRICS[name].unit.startswith(("0 to 1", "F1, 0", "share")) and not math.isnan(first.value):
        assert 0 <= first.value <= 1 and np.nanmin(first.values_N) >= 0 and np.nanmax(first.values_N) <= 1 + 1e-12
    empty = first.values_N[[p.reply for p in full].index("")]
    assert (
        empty == 0
        or name in {"empty_rate", "opening_rate", "emotion_majority", "act_majority", "emotion_label"}
        or math.isnan(empty)
    )


@settings(max_examples=40, deadline=None)
@given(SAID, st.text(alphabet="ab c", max_size=12).filter(str.strip))
def test_overlap_is_bounded_and_full_for_the_reference_itself(replies: list[str], reference: str) -> None:
    """0 <= figure <= 1; the reference as its own reply scores 1."""
    names = ["rouge_1", "rouge_l", "bleu", "sentence_bleu", "meteor_nosyn", "token_f1"]
    found = measure(names, pairs_of(replies, [reference] * len(replies)), RULES)
    assert all(-1e-12 <= v <= 1 + 1e-12 for m in found.values() for v in (m.value, *m.values_N))
    itself = measure(names, pairs_of([reference], [reference]), RULES)
    assert [itself[n].value for n in ("rouge_1", "rouge_l", "sentence_bleu", "token_f1")] == pytest.approx([1] * 4)


def test_what_is_missing_is_said_before_anything_is_computed() -> None:
    """Unknown names, no pairs, no reference, no emotion, no written label: one line that names it, and what to do."""
    pairs = [*PAIRS, Pair("none#1", "", (), "Hello.")]
    for name in ("rouge_1", "beam_rouge_1", "bleu", "meteor_nosyn", "bertscore_f1", "token_f1"):
        with pytest.raises(
            ValueError, match=rf"^metric {name} needs a reference, the pair of prompt 'none#1' has ''.*drop the metric$"
        ):
            measure(["mean_words", name], pairs)
    for names, says in (
        (["rogue_1"], "got 'rogue_1': did you mean rouge_1"),
        (["xyz"], "rouge_1, rouge_2"),
        ([], "must name one at least"),
        (["emotion_label"], "needs the corpus's emotion of the client, the pair of prompt 'x#1'"),
        (["act_majority"], "needs the corpus's dialogue_act"),
    ):
        with pytest.raises(ValueError, match=says):
            measure(names, PAIRS, RULES)
    with pytest.raises(
        ValueError, match="an emotion that the model wrote before its reply, none of the 7 replies has one"
    ):
        measure(["emotion_label"], PAIRS[:7], RULES)
    with pytest.raises(ValueError, match="pairs must hold at least one, is an empty list"):
        measure(["rouge_1"], [])
    with pytest.raises(ValueError, match="by must be one of prompt, dialogue, reply, got 'session'"):
        measure(["mean_words"], PAIRS, by="session")  # type: ignore[arg-type]


def test_pairs_of_prompts_and_replies() -> None:
    """A prompt's fields travel; counts that differ are refused; units are prompts, dialogues or replies."""
    prompts = [prompt(name="s/1#3", reference="r", emotion="fear"), prompt(name="s/1#5"), prompt(name="s/1#5")]
    pairs = pair_up(prompts, ["a", "", "a b"], written=[{"emotion": "fear"}, {}, {}])
    assert pairs[0] == Pair(
        "s/1#3", prompts[0].last_client_turn, prompts[0].history, "a", "r", "fear", written={"emotion": "fear"}
    )
    for wrong in (
        {"replies": ["a"]},
        {"replies": ["a"] * 3, "logprobs": [(-1.0,)] * 2},
        {"replies": ["a"] * 3, "texts": []},
    ):
        with pytest.raises(ValueError, match=r"(replies|logprobs|texts) must be one per prompt, are \d for 3 prompts"):
            pair_up(prompts, **wrong)  # type: ignore[arg-type]
    units = {by: measure(["mean_words"], pairs, RULES, by=by)["mean_words"] for by in ("prompt", "dialogue", "reply")}
    assert units["prompt"].units == ("s/1#3", "s/1#5") and units["dialogue"].units == ("s/1",)
    assert units["reply"].units == ("s/1#3/000000", "s/1#5/000000", "s/1#5/000001")
    assert {u.value for u in units.values()} == {1.0}


def test_every_metric_says_what_it_is() -> None:
    """A text, a unit, a direction, under its own name; METEOR's nosyn twin and its term share one writing."""
    assert all(m.name == name and len(m.text) > 25 and m.unit for name, m in METRICS.items())
    assert [m.name for m in chosen(["bleu", "rouge_1", "bleu"])] == ["bleu", "rouge_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = MeteorNoSyn(RULES.bench).of(REPLIES[0], REFERENCES[0])
    assert measure(["meteor_nosyn"], PAIRS[:1], RULES)["meteor_nosyn"].value == own


def test_asking_what_there_is_loads_no_torch() -> None:
    """Names, texts and errors come at once; models are loaded by the metric that needs them."""
    heavy = "{'torch', 'transformers', 'ray', 'sacrebleu', 'nltk'}"
    program = f"import sys; import eval.metrics, eval.comparison; print(sorted({heavy} & {{*sys.modules}}))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"
