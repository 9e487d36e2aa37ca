"""Fitted heads: what `attune fit` writes is read back, is what scikit-learn fitted, and refuses what does not belong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewards.classifiers import MECHANISMS, DialogueAct, EmotionClass, Empathy
from rewards.config import ActConfig, CrisisConfig, EmotionClassConfig, EmpathyConfig, EncoderConfig, RewardsConfig
from rewards.crisis import Tier, crisis_tier, gravest
from rewards.crisis_head import CrisisHead, joined
from rewards.danger import IN_DANGER, DangerReader
from rewards.danger_kernel import DangerKernel, fit_kernel, platt
from rewards.encoder import SentenceEncoder
from rewards.fit import run
from rewards.fit_config import FitConfig
from rewards.head_features import text_features
from rewards.heads import CARD, SHIPPED, Head
from rewards.labelled import crisis_rows
from rewards.softmax_regression import fit, nll, temperature
from rewards.types import Score
from rewards.workbench import Workbench
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.types import Speaker, Turn
from tests.reward_replies import prompt, reply

ROOT = Path(__file__).parents[1]
ESCONV = ROOT.parent / "shared" / "data" / "esconv" / "ESConv.json"
OPENINGS = (
    "I must say that",
    "Today",
    "Since last week",
    "Honestly,",
    "All in all",
    "When I woke up",
    "At work",
    "With you",
)
FEELINGS = {
    "sadness": (
        "I feel so sad and I keep crying",
        "everything is grey and I mourn her",
        "my heart is broken by this loss",
    ),
    "anger": ("I am furious about his lies", "it makes me so angry that I could shout", "I hate how unfair they were"),
    "joy": ("I am so happy and I laughed a lot", "it was wonderful and I love it", "I am delighted with the good news"),
}


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(EncoderConfig())


def write_examples(path: Path, labels: dict[str, str] | None = None) -> Path:
    """A TSV of 72 sentences; `labels` renames the labels."""
    rows = [
        f"{opening} {text}.\t{(labels or {}).get(label, label)}"
        for label, texts in FEELINGS.items()
        for text in texts
        for opening in OPENINGS
    ]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def emotion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    said: list[str] = []
    config = FitConfig(data=str(write_examples(folder / "feelings.tsv")), out=str(folder / "emotion"), resamples=100)
    run("emotion", config, said.append)
    assert any("min left" in line for line in said) and "emotion" in said[-1]
    return folder / "emotion"


def bench(**sections: object) -> Workbench:
    return Workbench(replace(RewardsConfig(), **sections))  # type: ignore[arg-type]


def test_a_head_gives_the_probabilities_that_scikit_learn_fitted(encoder: SentenceEncoder) -> None:
    """softmax of our layer equals predict_proba of the balanced logistic regression, for two labels and for three."""
    from sklearn.linear_model import LogisticRegression

    for names in (("sadness", "joy"), tuple(FEELINGS)):
        texts = [f"{o} {t}." for name in names for t in FEELINGS[name] for o in OPENINGS[:3]]
        y_N = np.repeat(np.arange(len(names)), 9)
        x_NF = text_features(encoder, texts)
        ours = Head(names, *vars_of(fit(x_NF, y_N, 1.0)), 1.0, encoder, {})
        theirs = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit(x_NF, y_N)
        np.testing.assert_allclose(ours.probabilities(x_NF), theirs.predict_proba(x_NF), atol=1e-5)


def vars_of(found: object) -> tuple[np.ndarray, np.ndarray]:
    return found.weight_CF, found.bias_C  # type: ignore[attr-defined]


def test_the_temperature_calibrates() -> None:
    """Logits three times too sure get a temperature of about three, and a lower loss; calibrated ones keep theirs."""
    draw = np.random.default_rng(0)
    logit_NC = draw.normal(size=(4000, 3)) * 2
    odds_NC = np.exp(logit_NC) / np.exp(logit_NC).sum(1, keepdims=True)
    y_N = np.array([draw.choice(3, p=odds) for odds in odds_NC])
    warmth = temperature(3 * logit_NC, y_N)
    assert warmth == pytest.approx(3.0, rel=0.1) and nll(3 * logit_NC / warmth, y_N) < nll(3 * logit_NC, y_N)
    assert temperature(logit_NC, y_N) == pytest.approx(1.0, rel=0.1)


def test_a_folder_says_what_it_is(emotion: Path) -> None:
    """Scores stand beside the majority's, with intervals, data and hashes; the card for people and the plot are there."""
    card = json.loads((emotion / CARD).read_text())
    scores = card["scores"]
    assert scores["accuracy"]["low"] <= scores["accuracy"]["value"] <= scores["accuracy"]["high"]
    assert scores["accuracy"]["value"] > scores["majority_accuracy"]["value"]
    assert set(card["labels"]) == set(FEELINGS) and len(card["data"]["files"]["feelings.tsv"]) == 64
    told = (emotion / "MODEL_CARD.md").read_text()
    assert "not a substitute for care" in told and "always saying" in told
    assert (emotion / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_fit_gives_the_same_bytes(emotion: Path, tmp_path: Path) -> None:
    """Every file of a second fit equals the first one's."""
    shutil.copy(emotion.parent / "feelings.tsv", tmp_path)
    run(
        "emotion",
        FitConfig(data=str(tmp_path / "feelings.tsv"), out=str(tmp_path / "again"), resamples=100),
        lambda _: None,
    )
    for path in emotion.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_head_that_does_not_belong_is_refused_by_its_setting(emotion: Path, tmp_path: Path) -> None:
    """No folder, a head of another kind, and a head of another encoder: each names the setting and says what to do."""
    with pytest.raises(ValueError, match=r"rewards\.emotion_class\.head .*attune fit emotion"):
        EmotionClass(bench(emotion_class=EmotionClassConfig(1.0, str(tmp_path))))
    with pytest.raises(ValueError, match=r"rewards\.act\.head .*kind 'act'"):
        DialogueAct(bench(act=ActConfig(1.0, str(emotion))))
    other = EncoderConfig(max_tokens=4)  # cuts the probe: other vectors
    with pytest.raises(ValueError, match="other vectors"):
        EmotionClass(bench(emotion_class=EmotionClassConfig(1.0, str(emotion)), encoder=other))
    with pytest.raises(ValueError, match=r"rewards\.act\.head must be given"):
        RewardsConfig(act=ActConfig(1.0))


def test_the_shipped_emotion_head_beats_the_majority_and_reads_plain_feelings() -> None:
    """Its card's accuracy and macro-F1 on GoEmotions' test rows lie above the majority's whole interval, and it tells plain
    sentences apart, which it was not fitted on."""
    scores = json.loads((SHIPPED / "emotion" / "card.json").read_text())["scores"]
    assert scores["accuracy"]["low"] > scores["majority_accuracy"]["high"] and scores["macro_f1"]["low"] > 2 / 7
    term = EmotionClass(bench(emotion_class=EmotionClassConfig(1.0)))
    said = {
        "sadness": "I miss her and I cry all night.",
        "anger": "I hate him, he makes me furious.",
        "joy": "I love this!",
    }
    scored = [term.score([reply(text, prompt(emotion=emotion))])[0] for emotion, text in said.items()]
    assert [score.notes["accuracy"] for score in scored] == [1.0, 1.0, 1.0]


def test_emotion_class_is_the_probability_of_the_annotated_emotion(emotion: Path) -> None:
    """High for a reply that shows it, low for one that shows another; ESConv's words are read as Ekman's, jealousy as none
    of them; the note says whether the head was right; an empty reply shows nothing."""
    term = EmotionClass(bench(emotion_class=EmotionClassConfig(1.0, str(emotion))))
    sad, annotated = "I feel so sad and I mourn her.", [prompt(emotion=e) for e in ("depression", "Anger")]
    right, wrong = (term.score([reply(sad, to)])[0] for to in annotated)
    assert right.value > 0.5 > wrong.value and (right.notes["accuracy"], wrong.notes["accuracy"]) == (1.0, 0.0)
    assert term.score([reply("  ", annotated[0])]) == [Score(0.0, notes={"accuracy": 0.0})]
    assert [term.applies(reply(sad, prompt(emotion=e))) for e in ("jealousy", "", "happiness")] == [False, False, True]


def test_act_is_the_probability_of_the_therapists_act(tmp_path: Path) -> None:
    """Of the act in the labels of the therapist's own reply; no say where that is unknown."""
    acts = {"sadness": "id", "anger": "irq", "joy": "gt"}
    config = FitConfig(data=str(write_examples(tmp_path / "acts.tsv", acts)), out=str(tmp_path / "act"), resamples=100)
    run("act", config, lambda _: None)
    term = DialogueAct(bench(act=ActConfig(1.0, str(tmp_path / "act"))))
    to = replace(prompt(), labels={"dialogue_act": "irq"})
    angry, glad = term.score([reply("I am furious about his lies.", to), reply("I am so happy.", to)])
    assert angry.value > 0.5 > glad.value
    assert term.applies(reply("x", to)) and not term.applies(reply("x", prompt()))


def test_empathy_is_the_expected_level_of_three_mechanisms(tmp_path: Path) -> None:
    """Files as EPITOME publishes them give a head each; a reply like the strong ones scores above one like the empty ones."""
    levels = ("Ok.", "That is bad.", "I am so sorry, that must hurt terribly and I feel with you.")
    for name in ("emotional-reactions", "interpretations", "explorations"):
        rows = ["sp_id,rp_id,seeker_post,response_post,level,rationales"]
        rows += [f'{k},r{k},"I lost it all, day {k}","{levels[k % 3]} {k}",{k % 3},' for k in range(150)]
        (tmp_path / f"{name}-reddit.csv").write_text("\n".join(rows) + "\n")
    run("empathy", FitConfig(data=str(tmp_path), out=str(tmp_path / "empathy"), resamples=100), lambda _: None)
    term = Empathy(bench(empathy=EmpathyConfig(1.0, str(tmp_path / "empathy"))))
    cold, warm = term.score([reply("Ok."), reply("I am so sorry, that must hurt terribly and I feel with you.")])
    assert cold.value < 0.3 < 0.7 < warm.value
    assert set(warm.parts) == set(MECHANISMS) and warm.value == pytest.approx(sum(warm.parts.values()) / 3)


def test_the_shipped_crisis_head_hears_danger_that_the_rules_miss(encoder: SentenceEncoder) -> None:
    """Of the held-out sentences in danger rules or head hear 95 in 100 at least, and no such sentence was trained on; on
    idioms and other traps the rules alone are the better ear. The workbench asks the head only where it is switched on."""
    folder = ROOT / "rewards" / "crisis_sentences"
    train, held = (crisis_rows(folder / name, tuple(Tier)) for name in ("train.tsv", "held_out.tsv"))
    assert len(held) >= 300 and not {text.casefold() for text, _, _ in train} & {text.casefold() for text, _, _ in held}
    rules = [crisis_tier(text) for text, _, _ in held]
    either = [
        gravest(pair) for pair in zip(rules, CrisisHead(encoder).tiers([text for text, _, _ in held]), strict=True)
    ]
    danger = [tier in IN_DANGER for _, tier, _ in held]
    traps = [kind == "trap" for _, _, kind in held]
    assert sum(e in IN_DANGER for e, d in zip(either, danger, strict=True) if d) >= 0.95 * sum(danger)
    passed = [sum(t not in IN_DANGER for t, trap in zip(ear, traps, strict=True) if trap) for ear in (rules, either)]
    assert passed[0] >= 0.9 * sum(traps) > passed[1]
    hint = (Turn(Speaker.CLIENT, "You won't be hearing from me after Friday, I have made my peace with it."),)
    assert bench(crisis=CrisisConfig()).danger.tier(hint) in IN_DANGER
    assert bench(crisis=CrisisConfig(classifier=False)).danger.tier(hint) not in IN_DANGER


def test_the_crisis_head_leaves_ordinary_talk_alone(encoder: SentenceEncoder) -> None:
    """It hears danger in fewer than one in ten of ESConv's test prompts, whose clients are sad and hardly ever in danger."""
    if not ESCONV.exists():
        pytest.skip(f"needs {ESCONV}, ESConv as published")
    corpus = load(CorpusConfig(format="esconv", path=str(ESCONV)))
    reader = DangerReader(CrisisHead(encoder))
    prompts = [
        d.turns[:i] for d in corpus.splits["test"][:40] for i, t in enumerate(d.turns) if t.speaker is Speaker.THERAPIST
    ]
    tiers = reader.tiers(prompts)
    assert len(prompts) > 300 and sum(tier in IN_DANGER for tier in tiers) < 0.1 * len(prompts)


def test_the_danger_kernel_is_scikit_learns_machine(tmp_path: Path) -> None:
    """Its margins are those of the pipeline of principal components and support vectors, to the sixteen bits that are kept; it
    comes back from its file as it went; joined probabilities add up to 1 and give danger its own."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    x_NF, danger_N = rng.normal(size=(120, 40)).astype(np.float32) / 6, rng.random(120) < 0.4
    x_NF[danger_N, :3] += 0.4
    kernel = fit_kernel(x_NF, danger_N, seed=0)
    theirs = make_pipeline(
        PCA(40, svd_solver="randomized", random_state=0), SVC(C=3.0, gamma=0.3, class_weight="balanced")
    )
    margin_N = theirs.fit(x_NF, danger_N).decision_function(x_NF)
    assert np.abs(kernel.margins(x_NF) - margin_N).max() < 0.02 < np.ptp(margin_N)
    slope, offset = platt(margin_N, danger_N)
    kernel = replace(kernel, slope=slope, offset=offset)
    (tmp_path / "danger").write_bytes(kernel.to_bytes())
    danger = kernel.probabilities(x_NF)
    assert np.abs(DangerKernel.read(tmp_path / "danger").probabilities(x_NF) - danger).max() < 1e-6
    share_NC = joined(danger, rng.dirichlet(np.ones(6), 120), tuple(Tier))
    inside = [tier in IN_DANGER for tier in Tier]
    assert np.abs(share_NC.sum(1) - 1).max() < 1e-9 and np.abs(share_NC[:, inside].sum(1) - danger).max() < 1e-9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "attune fit needs one of emotion, act"),
        (("joy",), "attune fit needs one of emotion, act"),
        (("emotion", "--out=new"), "data must name what to fit"),
        (("emotion", "--data=nowhere", "--out=new"), "nothing at nowhere"),
        (("emotion", "--data=bad.tsv", "--out=new"), "bad.tsv line 3"),
        (("emotion", "--data=bad.tsv", "--out=full"), "out must be a new or an empty folder"),
        (("emotion", "--resample=3"), "did you mean"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Exit code 2, one line that names the thing, and no folder."""
    (tmp_path / "bad.tsv").write_text("text\tlabel\nfine\tjoy\nno label here\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "fit", *words], cwd=tmp_path, env=_environment(), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    lines = [line for line in answer.stderr.splitlines() if line.startswith("attune: ")]
    assert answer.returncode == 2 and len(lines) == 1 and said in lines[0], answer.stderr
    assert not (tmp_path / "new").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
