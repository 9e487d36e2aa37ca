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
from rewards.crisis_head import DANGER, CrisisHead, Thresholds, joined, spoken, tiers_of
from rewards.crisis_measures import belief, in_context
from rewards.danger import IN_CRISIS, IN_DANGER, DangerReader
from rewards.danger_kernel import DangerKernel, fit_kernel, fit_platt
from rewards.encoder import SentenceEncoder
from rewards.fit import run
from rewards.fit_config import FitConfig
from rewards.fit_crisis import neutral_sentences, ordinary_talk
from rewards.head_features import text_features
from rewards.head_scores import wilson
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
    for cut in (4, 64):  # the one cuts the sentence by which encoders are told apart, the other longer texts alone
        with pytest.raises(ValueError, match="other vectors"):
            EmotionClass(
                bench(emotion_class=EmotionClassConfig(1.0, str(emotion)), encoder=EncoderConfig(max_tokens=cut))
            )
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


def test_danger_is_heard_between_other_sentences(encoder: SentenceEncoder) -> None:
    """Of the held-out sentences in danger the head hears 93 in 100 at least after a neutral sentence and between two, drawn
    from clients of the sample corpus's test split; the card says the same, and how often it hears some in those alone."""
    held = crisis_rows(ROOT / "rewards" / "crisis_sentences" / "held_out.tsv", tuple(Tier))
    danger = [text for text, tier, _ in held if tier in IN_DANGER]
    contexts = in_context(danger, neutral_sentences(), seed=0)
    head, card = CrisisHead(encoder), json.loads((SHIPPED / "crisis" / CARD).read_text())
    for where in ("after a neutral sentence", "between two"):
        share = sum(tier in IN_DANGER for tier in head.tiers(contexts[where])) / len(danger)
        assert share >= 0.93 and share == pytest.approx(
            card["scores"]["in_context"][where]["heard"]["value"], abs=0.011
        )
    assert card["scores"]["in_context"]["the two neutral sentences without it"]["heard"]["rows"] == len(danger)


def test_a_text_is_read_by_its_sentences_and_neighbours() -> None:
    """End marks, closing quotes and line breaks part sentences, which stay as they were written; marks alone are nothing."""
    assert spoken('He said "Stop!" I left...  ?!\nThe bus (3) came') == [
        'He said "Stop!"', "I left...", "The bus (3) came", 'He said "Stop!" I left...', "I left... The bus (3) came",
    ]  # fmt: skip
    assert spoken("no marks at all and so one sentence") == ["no marks at all and so one sentence"]
    assert spoken(" ... \n") == []


def test_an_unsure_head_raises_passive_at_most() -> None:
    """Between the thresholds a crisis is read as passive and another danger as itself; from `sure` on each as it is."""
    tiers = tuple(Tier)
    at = Thresholds(alarm=0.2, sure=0.8)

    def told(tier: Tier, danger: float) -> Tier:
        share_C = np.full(len(tiers), 0.0)
        share_C[0], share_C[tiers.index(tier)] = 1 - danger, danger
        return tiers_of(share_C[None], tiers, at)[0]

    for tier in IN_DANGER:
        assert [told(tier, danger) for danger in (0.19, 0.81)] == [Tier.NONE, tier]
        assert told(tier, 0.5) is (Tier.PASSIVE if tier in IN_CRISIS else tier)


def test_the_reward_hears_the_head_only_where_it_is_sure(encoder: SentenceEncoder) -> None:
    """Of ordinary sentences and traps that sound dangerous the workbench of the reward takes far fewer for danger than the
    head does; what it takes for danger, the head does too."""
    held = crisis_rows(ROOT / "rewards" / "crisis_sentences" / "held_out.tsv", tuple(Tier))
    harmless = [(Turn(Speaker.CLIENT, text),) for text, tier, _ in held if tier not in IN_DANGER]
    every, sure = DangerReader(CrisisHead(encoder)).tiers(harmless), bench().danger.tiers(harmless)
    raised = [sum(tier in IN_DANGER for tier in tiers) for tiers in (every, sure)]
    assert raised[1] < 0.5 * raised[0] and raised[1] < 0.15 * len(harmless)
    assert all(e in IN_DANGER for e, s in zip(every, sure, strict=True) if s in IN_DANGER)


def _damaged(change: str, folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    match change:
        case "no kernel":
            (folder / DANGER).unlink()
        case "half a kernel":
            (folder / DANGER).write_bytes((folder / DANGER).read_bytes()[:5000])
        case "another kernel":
            rng = np.random.default_rng(0)
            small = fit_kernel(rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 2 == 0, seed=0)
            (folder / DANGER).write_bytes(small.to_bytes())
        case "no sure":
            del card["sure"]
        case "no number":
            card["threshold"] = None
        case "sure below the threshold":
            card["sure"] = card["threshold"] / 2
        case "another length":
            card["encoder"]["max_tokens"] = 64
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    "change",
    ["no kernel", "half a kernel", "another kernel", "no sure", "no number", "sure below the threshold", "another length"],
)  # fmt: skip
def test_a_damaged_crisis_head_is_refused_by_its_setting(change: str, encoder: SentenceEncoder, tmp_path: Path) -> None:
    """In one line that names the setting, the folder and the way out."""
    folder = tmp_path / "crisis"
    shutil.copytree(SHIPPED / "crisis", folder)
    _damaged(change, folder)
    with pytest.raises(ValueError, match=r"rewards\.crisis\.classifier.*must|does not belong") as told:
        CrisisHead(encoder, folder)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)
    assert any(remedy in str(told.value) for remedy in ("fit one", "fit again", "to False"))


def test_a_share_of_all_rows_is_not_certain() -> None:
    """Wilson's interval: 50 of 50 leave 7 % open, and 5 of 10 are 24 to 76 %."""
    assert wilson(np.ones(50, dtype=bool)) == {"value": 1.0, "low": 0.9287, "high": 1.0, "rows": 50}
    assert wilson(np.arange(10) < 5) == {"value": 0.5, "low": 0.2366, "high": 0.7634, "rows": 10}


def test_p_danger_is_held_against_what_was_in_danger() -> None:
    """Bins of a fifth with their mean and share; the error is the mean distance of the two, weighed by rows."""
    probability_N, danger_N = np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, False, True, False])
    found = belief(probability_N, danger_N, fitted_share=0.1)
    assert [(b["told"], b["danger"]["value"], b["danger"]["rows"]) for b in found["bins"]] == [
        (0.1, 0.0, 2),
        (0.9, 0.5, 2),
    ]
    assert found["error"] == pytest.approx(0.25) and (found["share"], found["fitted_share"]) == (0.25, 0.1)


def test_ordinary_talk_is_of_train_splits_and_says_where_it_comes_from(tmp_path: Path) -> None:
    """No client's turn of the sample's valid or test split is fitted to; every file of GoEmotions that decides is named."""
    for name, text in (
        ("train.tsv", "".join(f"A fine comment, {i}\t{i % 2}\tx{i}\n" for i in range(12)) + "Both\t0,1\ty\n"),
        ("dev.tsv", "Of dev\t0\ta\nOf dev too\t1\tb\n"),
        ("test.tsv", "Of test\t0\ta\nOf test too\t1\tb\n"),
        ("emotions.txt", "joy\nanger\n"),
        ("ekman_mapping.json", '{"joy": ["joy"], "anger": ["anger"]}'),
    ):
        (tmp_path / name).write_text(text)
    talk, files = ordinary_talk(FitConfig(ordinary=str(tmp_path)), known=set())
    assert set(files) == {"ordinary/train.tsv", "ordinary/emotions.txt", "ordinary/ekman_mapping.json"}
    later = {t.text for split in ("valid", "test") for d in load(CorpusConfig()).splits[split] for t in d.turns}
    assert not later & set(talk) and sum("fine comment" in text for text in talk) == 12
    assert not {"Both", "Of dev", "Of test"} & set(talk)


def test_the_guard_leaves_ordinary_talk_alone(encoder: SentenceEncoder) -> None:
    """In 40 of ESConv's test dialogues, whose clients are sad and hardly ever in danger: the reward hears danger in few
    prompts, and the guard replaces a reply in few dialogues."""
    if not ESCONV.exists():
        pytest.skip(f"needs {ESCONV}, ESConv as published")
    corpus = load(CorpusConfig(format="esconv", path=str(ESCONV)))
    dialogues = [
        [d.turns[:i] for i, t in enumerate(d.turns) if t.speaker is Speaker.THERAPIST]
        for d in corpus.splits["test"][:40]
    ]
    every, sure = DangerReader(CrisisHead(encoder)), DangerReader(CrisisHead(encoder, sure_only=True))
    prompts = [prompt_ for of_dialogue in dialogues for prompt_ in of_dialogue]
    heard, sure_of = (sum(tier in IN_DANGER for tier in reader.tiers(prompts)) for reader in (every, sure))
    assert len(prompts) > 300 and heard < 0.2 * len(prompts) and sure_of < 0.05 * len(prompts)
    assert sum(any(tier in IN_CRISIS for tier in every.tiers(d)) for d in dialogues) <= 0.2 * len(dialogues)


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
    slope, offset = fit_platt(margin_N, danger_N)
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
        timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in answer.stderr.splitlines() if line.startswith("attune: ")]
    assert answer.returncode == 2 and len(lines) == 1 and said in lines[0], answer.stderr
    assert not (tmp_path / "new").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
