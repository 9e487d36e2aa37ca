"""BERTScore against the therapist's own reply, on the shared encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.types import Score
from rewards.words import words
from rewards.workbench import Workbench
from rollout.types import Rollout

_PAD = 2.0  # as the package bert-score pads; what is padded is masked


class BertScore:
    """BERTScore F1 (Zhang et al. 2020, arXiv:1904.09675), unscaled, without idf, at the encoder's last layer; in [0, 1].

    The matching is that of the package bert-score; the tokens are those that other terms embed anyway, so that it costs no
    second pass. Abstains without a reference; an empty reply is 0. Precision and recall are noted. Unscaled values are
    high for any English: watch differences, or normalise terms.
    """

    def __init__(self, bench: Workbench) -> None:
        self._encoder = bench.encoder

    def applies(self, rollout: Rollout) -> bool:
        """Whether there is a reference to compare with."""
        return bool(rollout.prompt.reference.strip())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, all of which have a reference."""
        spoken = [r for r in rollouts if words(r.text)]
        found = iter(self.matched([r.text for r in spoken], [r.prompt.reference for r in spoken]))
        return [next(found) if words(r.text) else Score(0.0, {"precision": 0.0, "recall": 0.0}) for r in rollouts]

    def matched(self, replies: Sequence[str], references: Sequence[str]) -> list[Score]:
        """One score per pair of texts with words in them, in order."""
        import torch
        from bert_score.utils import greedy_cos_idf
        from torch.nn.utils.rnn import pad_sequence

        if not replies:
            return []
        known = self._encoder.read([*replies, *references])
        sides = []
        for texts in (references, replies):
            tokens = [known[text].tokens for text in texts]
            states_BTD = pad_sequence(tokens, batch_first=True, padding_value=_PAD)
            lengths_B1 = torch.tensor([[len(token)] for token in tokens])
            places_1T = torch.arange(states_BTD.shape[1])[None]
            mask_BT = places_1T < lengths_B1
            weight_BT = (
                mask_BT & (places_1T > 0) & (places_1T < lengths_B1 - 1)
            ).float()  # special tokens weigh nothing
            sides += [states_BTD, mask_BT, weight_BT]
        figures_3B = [figure.clamp(0.0, 1.0).tolist() for figure in greedy_cos_idf(*sides)]
        return [Score(f1, {"precision": p, "recall": r}) for p, r, f1 in zip(*figures_3B, strict=True)]
