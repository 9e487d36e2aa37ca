from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from rewards.config import EncoderConfig, RewardsConfig
from rewards.encoder import SentenceEncoder, encoder_source
from rewards.panel import Panel
from rewards.similarity import Similarity
from rewards.workbench import Workbench
from tests.reward_replies import GOOD, REFERENCE, prompt, reply

TEXTS = ["That sounds hard.", "I hear how alone you have felt since you moved, and I would like to know more.", "Yes"]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(EncoderConfig(batch_size=2))


def test_a_vector_is_the_mean_over_the_texts_own_tokens_at_unit_length(encoder: SentenceEncoder) -> None:
    """Each vector equals the mean of the last layer over the text's tokens, divided by its norm, computed alone."""
    model = AutoModel.from_pretrained(encoder_source("minilm"), dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_source("minilm"))
    vectors = encoder.embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            hidden_TD = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean_D = sum(hidden_TD) / len(hidden_TD)
        torch.testing.assert_close(vector, mean_D / mean_D.dot(mean_D) ** 0.5, atol=1e-5, rtol=0)


def test_texts_are_cut_at_max_tokens() -> None:
    """A text and its continuation beyond `max_tokens` have the same vector."""
    short = SentenceEncoder(EncoderConfig(max_tokens=6, batch_size=2))  # four words and two special tokens
    cut, whole = short.embed(["one two three four", "one two three four five six seven"])
    torch.testing.assert_close(cut, whole)


def test_similarity_is_the_cosine_and_orders_replies_as_a_reader_would(encoder: SentenceEncoder) -> None:
    """The reference itself scores 1, a paraphrase more than another subject, nothing 0, each the cosine of the two."""
    to = prompt(reference=REFERENCE)
    texts = [REFERENCE, GOOD, "The train to the airport leaves at nine.", "  "]
    values = [s.value for s in Similarity(Workbench(RewardsConfig())).score([reply(text, to) for text in texts])]
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values[0] > values[1] > values[2] >= values[3] == 0.0
    this, that = encoder.embed([GOOD, REFERENCE])
    assert values[1] == pytest.approx(float(this @ that), abs=1e-5)


def test_similarity_abstains_without_a_reference() -> None:
    """The term applies to a prompt exactly when it has a reference with words in it."""
    term = Similarity(Workbench(RewardsConfig()))
    applies = [term.applies(reply(GOOD, prompt(reference=text))) for text in ("", " \n", REFERENCE)]
    assert applies == [False, False, True]


def test_scores_are_a_function_of_the_call_alone() -> None:
    """An actor that has scored other replies and one just built give bit for bit the same scores."""
    seasoned, fresh = Panel(RewardsConfig()), Panel(RewardsConfig())
    replies = [reply(GOOD, prompt(name=str(i), reference=text)) for i, text in enumerate(TEXTS)]
    for one in replies:
        seasoned.measure([one])
    assert seasoned.measure(replies) == fresh.measure(replies)


def test_a_folder_without_a_model_is_refused_by_the_knobs_name(tmp_path: Path) -> None:
    """A path that holds no encoder raises a ValueError that names the knob and the path."""
    with pytest.raises(ValueError, match=r"rewards\.encoder\.path") as refusal:
        Similarity(Workbench(RewardsConfig(encoder=EncoderConfig(path=str(tmp_path)))))
    assert str(tmp_path) in str(refusal.value)
