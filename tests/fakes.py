"""Small stand-ins for an engine, a reward and a learner that hold whoever calls them to the contract.

Each one checks what it is given before it answers, writes what it was asked to a shared `journal`, and answers as a
pure function of its state and input, so that two runs can be compared.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rewards.panel import Measurement
from rewards.types import Score, ScoredRollout
from rl.batch import Batch, Experience, split
from rollout.types import Finish, Prompt, Rollout, Sampling, VersionSpan

if TYPE_CHECKING:
    from rl.learner import UpdateReport

WORDS = ("I", "hear", "you", "and", "what", "happened", "then", "tired", "slept", "today")


class FakeEngine:
    """A `RolloutEngine` whose replies are a hash of (seed, prompt, sample, version)."""

    def __init__(self, journal: list[str], *, deaf_to: frozenset[int] = frozenset()) -> None:
        self.journal = journal
        self.version = -1
        self.asked: list[tuple[list[str], int]] = []  # prompt ids and sampling seed of each call
        self._deaf_to = deaf_to  # versions that never arrive

    def receive(self, version: int) -> None:
        """Take the weights of policy `version`; versions rise by one."""
        assert version == self.version + 1 or self.version == -1 or version - 1 in self._deaf_to
        if version not in self._deaf_to:
            self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.n` replies per prompt, in prompt order."""
        assert self.version >= 0, "asked before any weights were published"
        assert prompts and all(prompt.token_ids and prompt.id for prompt in prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts), "prompt ids are unique in a step"
        assert sampling.n >= 1 and sampling.max_tokens >= 1 and sampling.temperature > 0
        self.journal.append("generate")
        self.asked.append(([prompt.id for prompt in prompts], sampling.seed))
        return [self._reply(prompt, k, sampling) for prompt in prompts for k in range(sampling.n)]

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probs of a uniform policy."""
        assert all(prompt and reply for prompt, reply in sequences)
        return [[-math.log(len(WORDS))] * len(reply) for _, reply in sequences]

    def _reply(self, prompt: Prompt, sample: int, sampling: Sampling) -> Rollout:
        key = f"{sampling.seed} {prompt.id} {sample} {self.version}"
        digest = hashlib.sha256(key.encode()).digest()
        count = 1 + digest[0] % sampling.max_tokens
        ids = array("i", (byte % len(WORDS) for byte in digest[1 : count + 1]))
        return Rollout(
            prompt=prompt,
            sample=sample,
            response_ids=ids,
            sampled_logprobs=array("d", (-math.log(len(WORDS)) - byte / 256 for byte in digest[1 : count + 1])),
            versions=(VersionSpan(self.version, 0, count),),
            text=" ".join(WORDS[i] for i in ids),
            finish=Finish.TRUNCATED if count == sampling.max_tokens else Finish.STOPPED,
        )


class CheckedReward:
    """A real reward behind a check of what the loop owes it: whole, grouped, finished replies."""

    def __init__(self, journal: list[str], inner: Any) -> None:
        self.journal, self._inner = journal, inner
        self._measured: list[tuple[Sequence[Rollout], Sequence[Measurement]]] = []  # and not settled yet

    def measure(self, rollouts: Sequence[Rollout]) -> Sequence[Measurement]:
        """What the inner reward finds."""
        assert rollouts
        groups = [prompt for prompt, _ in groupby(rollout.prompt.id for rollout in rollouts)]
        assert len(groups) == len(set(groups)), "siblings arrive together"
        assert len({rollout.id for rollout in rollouts}) == len(rollouts)
        for rollout in rollouts:
            covered = [i for span in rollout.versions for i in range(span.start, span.stop)]
            assert covered == list(range(len(rollout.response_ids))), "versions cover the reply without gaps"
            assert len(rollout.sampled_logprobs) == len(rollout.response_ids) > 0
            assert rollout.finish is not Finish.ABORTED
        measured: Sequence[Measurement] = self._inner.measure(rollouts)
        self._measured.append((rollouts, measured))
        return measured

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        """The inner reward's scores, of the replies that were measured first."""
        first, found = self._measured.pop(0)
        assert [r.id for r in rollouts] == [r.id for r in first] and measured is found
        self.journal.append("score")
        return list(self._inner.settle(rollouts, measured))

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """The inner reward's batch: as many replies as there were."""
        revised = list(self._inner.revise(scored))
        assert len(revised) == len(scored)
        return revised

    def metrics(self) -> Mapping[str, float]:
        """The inner reward's."""
        return dict(self._inner.metrics())

    def state_dict(self) -> dict[str, Any]:
        """The inner reward's statistics."""
        return dict(self._inner.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand them back."""
        self._inner.load_state_dict(state)


class FakeLearner:
    """A `Learner` whose whole policy is one number, changed by every update."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.weight, self.version = 0.0, -1
        self._annotated: Experience | None = None

    def annotate(self, batch: Batch) -> Experience:
        """An experience whose every column is made from `batch`."""
        B, S = batch.tokens_BS.shape
        assert B == batch.rows > 0 and int(batch.lengths_B.max()) == S
        assert batch.mask_BT.dtype == torch.bool and batch.tokens_BS.dtype == torch.int64
        for name in ("mask_BT", "sampled_logprobs_BT", "versions_BT"):
            assert getattr(batch, name).shape == (B, S - 1), name
        for name in ("lengths_B", "prompt_lengths_B", "group_B", "score_B", "unfinished_B"):
            assert getattr(batch, name).shape == (B,), name
        assert batch.score_B.isfinite().all()
        assert all(prompt and reply for prompt, reply, _ in split(batch))
        self.journal.append("annotate")
        column_BT = torch.where(batch.mask_BT, batch.sampled_logprobs_BT + self.weight, 0)
        columns = ("logprobs_BT", "reference_logprobs_BT", "values_BT", "weights_BT", "advantages_BT", "returns_BT")
        self._annotated = Experience(
            **vars(batch), **dict.fromkeys(columns, column_BT), token_share_LE=torch.zeros(0, 0)
        )
        return self._annotated

    def update(self, experience: Experience) -> UpdateReport:
        """One step on what was just annotated."""
        from rl.learner import UpdateReport  # imports DeepSpeed: only where an update is made

        assert experience is self._annotated, "an update follows the annotation of its own batch"
        self._annotated = None
        self.journal.append("update")
        self.weight += float(experience.score_B.double().mean())
        return UpdateReport({"policy/loss": self.weight, "policy/kl": self.weight / 2})

    def publish(self, engine: FakeEngine) -> dict[str, float]:
        """The engine has the newest policy on return."""
        self.version += 1
        self.journal.append(f"publish {self.version}")
        engine.receive(self.version)
        return {"publish/logprob_gap": 0.0, "publish/bytes": 8.0, "publish/seconds": 0.0}

    def save(self, folder: Path) -> dict[str, Any]:
        """One file under `folder/learner`; a learner's ranks may stand elsewhere, so `folder` is absolute."""
        assert folder.is_absolute() and folder.is_dir() and not any(folder.iterdir())
        self.journal.append("save")
        (folder / "learner").mkdir()
        (folder / "learner" / "weight.json").write_text(json.dumps(self.weight))
        return {"version": self.version}

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """What `save` wrote; the next publish repeats the version that was current."""
        assert folder.is_absolute()
        assert set(state) == {"version"}, "the state that `save` returned, and nothing else"
        self.journal.append("restore")
        self.weight = json.loads((folder / "learner" / "weight.json").read_text())
        self.version = int(state["version"]) - 1
