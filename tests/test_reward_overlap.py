"""Agreement with the reference: the figures are those of the packages that define them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.bertscore import BertScore
from rewards.config import EncoderConfig, MeteorConfig, ReaderConfig, RewardsConfig
from rewards.encoder import encoder_source
from rewards.overlap import Bleu, Meteor, MeteorNoSyn, Reader, Rouge
from rewards.panel import TERMS
from rewards.workbench import Workbench
from tests.reward_replies import GOOD, REFERENCE, prompt, reply

TEXTS = [REFERENCE, GOOD, "The train to the airport leaves at nine.", "lately, on going been has what me tell you can"]
TO = prompt(reference=REFERENCE)
NAMES = ("bertscore", "rouge", "bleu", "meteor_nosyn", "reader")


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(RewardsConfig())


def values(term: object, texts: list[str] = TEXTS) -> list[float]:
    return [s.value for s in term.score([reply(text, TO) for text in texts])]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_agreement_orders_replies_and_ends_at_0_and_1(bench: Workbench, name: str) -> None:
    """The reference itself scores 1 (METEOR, whose penalty never ends, nearly), a paraphrase more than another subject, no
    words 0; a prompt without a reference is left alone."""
    term = TERMS[name](bench)
    same, good, other, _ = values(term)
    assert same == pytest.approx(1.0, abs=2e-3) and same > good > other >= 0
    assert values(term, ["", " ?! "]) == [0.0, pytest.approx(0.0, abs=0.01)]  # READER's similarity reads marks, too
    assert [term.applies(reply(GOOD, prompt(reference=text))) for text in ("", " \n", REFERENCE)] == [
        False,
        False,
        True,
    ]


def test_bertscore_is_the_packages_own(bench: Workbench) -> None:
    """Precision, recall and F1 equal bert_score.score on the same model and layer to 1e-5, whatever shares the batch."""
    from bert_score import score

    scored = BertScore(bench).score([reply(text, TO) for text in TEXTS])
    path = encoder_source("minilm")
    p, r, f1 = score(TEXTS, [REFERENCE] * len(TEXTS), model_type=path, num_layers=6, device="cpu")
    assert [s.parts["precision"] for s in scored] == pytest.approx(p.tolist(), abs=1e-5)
    assert [s.parts["recall"] for s in scored] == pytest.approx(r.tolist(), abs=1e-5)
    assert [s.value for s in scored] == pytest.approx(f1.tolist(), abs=1e-5)
    alone = [
        BertScore(Workbench(RewardsConfig(encoder=EncoderConfig(batch_size=1)))).score([reply(t, TO)]) for t in TEXTS
    ]
    assert [s.value for (s,) in alone] == pytest.approx([s.value for s in scored], abs=1e-5)


def test_rouge_bleu_and_meteor_by_hand(bench: Workbench) -> None:
    """ROUGE-L, BLEU and METEOR of a pair that fits on a napkin."""
    to = prompt(reference="the cat sat on the mat")
    said = [reply("the cat on the mat", to)]
    precision, recall = 5 / 5, 5 / 6  # longest common subsequence: the cat on the mat
    assert Rouge(bench).score(said)[0].value == pytest.approx(2 * precision * recall / (precision + recall))
    # n-grams 5/5, 3/4, 1/3, then 0/2, smoothed to 1/(2 * 2); brevity exp(1 - 6/5)
    bleu = 2.718281828 ** (1 - 6 / 5) * (1 * 3 / 4 * 1 / 3 * 1 / 4) ** (1 / 4)
    assert Bleu(bench).score(said)[0].value == pytest.approx(bleu, abs=1e-6)
    # five matches in two chunks: F = PR / (.9 P + .1 R), penalty .5 (2/5)^3
    f = precision * recall / (0.9 * precision + 0.1 * recall)
    assert MeteorNoSyn(bench).score(said)[0].value == pytest.approx(f * (1 - 0.5 * (2 / 5) ** 3))


def test_reader_is_its_weighted_parts_over_their_weights(bench: Workbench) -> None:
    """(similarity + BLEU-1 + ROUGE-1 + 4 ROUGE-2 + 2 ROUGE-L) / 9 where no act is known; the parts are noted."""
    (score,) = Reader(bench).score([reply(GOOD, TO)])
    p = score.parts
    total = p["similarity"] + p["bleu1"] + p["rouge1"] + 4 * p["rouge2"] + 2 * p["rougeL"]
    assert score.value == pytest.approx(total / 9)
    assert p.keys() == {"similarity", "bleu1", "rouge1", "rouge2", "rougeL"}


def test_meteor_never_goes_without_its_synonyms(tmp_path: Path) -> None:
    """A folder without WordNet is refused with the name of the setting and of the term that needs none."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"rewards\.meteor\.wordnet must .* meteor_nosyn"):
            Meteor(Workbench(RewardsConfig(meteor=MeteorConfig(1.0, str(folder)))))
    with pytest.raises(ValueError, match=r"rewards\.meteor\.wordnet must be given"):
        RewardsConfig(meteor=MeteorConfig(1.0))


def test_an_act_head_that_is_none_is_refused(tmp_path: Path) -> None:
    """READER with a folder that holds no head says so when it is built."""
    with pytest.raises(ValueError, match=str(tmp_path)):
        Reader(Workbench(RewardsConfig(reader=ReaderConfig(1.0, str(tmp_path)))))
