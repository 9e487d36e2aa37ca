"""A decoder that has beams: transformers', for the figures that vLLM cannot give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.arms import Answer, Outcome
from rollout.fields import read_labels
from rollout.tokenizer import load_tokenizer
from rollout.types import Prompt

_AT_ONCE = 8  # prompts decoded together


@dataclass(frozen=True)
class DecoderSpec:
    """Everything a decoder needs to start."""

    model: str
    revision: str
    dtype: str
    end_ids: tuple[int, ...]
    on_gpu: bool


class Decoder:
    """Loads a causal model whole, spread over the devices that this process sees."""

    def __init__(self, spec: DecoderSpec) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._spec = spec
        self._tokenizer = load_tokenizer(spec.model, spec.revision)
        self._model = AutoModelForCausalLM.from_pretrained(
            spec.model,
            revision=spec.revision or None,
            dtype=getattr(torch, spec.dtype),
            device_map="auto" if spec.on_gpu else None,
        ).eval()

    def decode(self, prompts: Sequence[Prompt], beams: int, sample: bool, max_tokens: int, seed: int) -> list[Answer]:
        """One answer per prompt. Sampled beams (Hugging Face's beam search multinomial sampling) draw from `seed` and the prompts'
        place, so that a run repeats."""
        import torch
        from transformers import GenerationConfig

        pad = self._spec.end_ids[0]
        settings = GenerationConfig(
            num_beams=beams, do_sample=sample, max_new_tokens=max_tokens, eos_token_id=list(self._spec.end_ids),
            pad_token_id=pad, top_k=0, top_p=1.0, temperature=1.0, early_stopping=beams > 1,
        )  # fmt: skip
        found: list[Answer] = []
        for start in range(0, len(prompts), _AT_ONCE):
            batch = prompts[start : start + _AT_ONCE]
            width = max(len(prompt.token_ids) for prompt in batch)
            rows = [[pad] * (width - len(p.token_ids)) + list(p.token_ids) for p in batch]
            mask = [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in batch]
            torch.manual_seed(seed + start)
            with torch.inference_mode():
                written = self._model.generate(
                    input_ids=torch.tensor(rows, device=self._model.device),
                    attention_mask=torch.tensor(mask, device=self._model.device),
                    generation_config=settings,
                )
            found += [self._answer(p, row[width:].tolist()) for p, row in zip(batch, written, strict=True)]
        return found

    def _answer(self, prompt: Prompt, ids: list[int]) -> Answer:
        ends = [place for place, token in enumerate(ids) if token in self._spec.end_ids]
        ids = ids[: ends[0]] if ends else ids
        raw = self._tokenizer.decode(ids, skip_special_tokens=False)
        text = read_labels(self._tokenizer.decode(ids, skip_special_tokens=True))[1]
        outcome = Outcome.STOPPED if ends else Outcome.TRUNCATED
        return Answer(prompt.id, 0, text, outcome, written=read_labels(raw)[0])
