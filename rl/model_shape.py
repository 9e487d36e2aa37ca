"""A causal language model as numbers: how many parameters it has, and where, without building it. Imports no torch.

Axes of the formulas: V vocabulary, D hidden, L layers, F feed-forward, Q = heads x head size, K = key-value heads x head size,
E experts. Counts are exact: tests compare them with what transformers builds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl.config import LoraConfig, TinyConfig

Family = Literal["llama", "gpt2"]
ATTENTION = {"llama": ("q_proj", "k_proj", "v_proj", "o_proj"), "gpt2": ("c_attn", "attn.c_proj")}  # modules


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. `llama` (Llama, Mistral, Mixtral): gated feed-forward, RMS norms, no biases; with `experts` > 0
    each layer has that many, of which a token takes `experts_per_token`. `gpt2`: biases, learned positions."""

    family: Family
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    positions: int
    experts: int = 0
    experts_per_token: int = 0
    tied: bool = False  # the output layer is the embedding

    @property
    def queries(self) -> int:
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear modules of one layer, by name; stacks of experts are in `stacks`."""
        d, f = self.hidden, self.feed_forward
        if self.family == "gpt2":
            return {"c_attn": (d, 3 * d), "attn.c_proj": (d, d), "c_fc": (d, f), "mlp.c_proj": (f, d)}
        attention = {
            "q_proj": (d, self.queries),
            "k_proj": (d, self.keys),
            "v_proj": (d, self.keys),
            "o_proj": (self.queries, d),
        }
        feed_forward = {} if self.experts else {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}
        return attention | feed_forward

    @property
    def stacks(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each expert's weights, by the name of the stack that holds all of a layer."""
        if not self.experts:
            return {}
        d, f = self.hidden, self.feed_forward
        return {"experts.gate_up_proj": (d, 2 * f), "experts.down_proj": (f, d)}

    @property
    def attention(self) -> int:
        """Parameters of one layer's attention."""
        biases = 4 * self.hidden if self.family == "gpt2" else 0
        return sum(i * o for name, (i, o) in self.modules.items() if name in ATTENTION[self.family]) + biases

    @property
    def expert(self) -> int:
        """Parameters of one expert."""
        return sum(i * o for i, o in self.stacks.values())

    @property
    def feed_forward_block(self) -> int:
        """Parameters of one layer's feed-forward part: of all experts and their router, where it has some."""
        if self.experts:
            return self.experts * (self.expert + self.hidden)
        biases = self.feed_forward + self.hidden if self.family == "gpt2" else 0
        return sum(i * o for name, (i, o) in self.modules.items() if name not in ATTENTION[self.family]) + biases

    @property
    def norms(self) -> int:
        """Parameters of all norms."""
        return (2 * self.layers + 1) * self.hidden * (2 if self.family == "gpt2" else 1)

    @property
    def head(self) -> int:
        """Parameters of the output layer that are not the embedding's."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.vocabulary + (self.positions if self.family == "gpt2" else 0)
        blocks = self.layers * (self.attention + self.feed_forward_block)
        return embeddings * self.hidden + blocks + self.norms + self.head

    @property
    def active(self) -> int:
        """Parameters that multiply for one token: all but the embeddings' rows and the experts not chosen."""
        unused = self.layers * (self.experts - self.experts_per_token) * self.expert
        table = self.vocabulary * self.hidden if not self.tied else 0
        return self.parameters - unused - table

    def adapter(self, lora: LoraConfig, stacks: tuple[str, ...] = ()) -> int:
        """Parameters of one adapter of rank r: r x (inputs + outputs) of every target. Raises ValueError without a match."""
        targets = [ends for name, ends in self.modules.items() if name.rpartition(".")[2] in lora.targets]
        if not targets:
            leaves = sorted({name.rpartition(".")[2] for name in self.modules})
            raise ValueError(
                f"model.lora.targets {list(lora.targets)} match no module of this model; it has {', '.join(leaves)}"
            )
        if unknown := sorted(set(stacks) - set(self.stacks)):
            raise ValueError(
                f"model.lora.target_parameters must name stacks of experts, {unknown} are none of this model; it has "
                f"{', '.join(self.stacks) or 'none: leave the setting empty'}"
            )
        dense = sum(i + o for i, o in targets)
        experts = self.experts * sum(sum(ends) for name, ends in self.stacks.items() if name in stacks)
        return self.layers * lora.rank * (dense + experts)


def from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a model's config.json. Raises ValueError for families that are not known."""
    kind = config.get("model_type")
    if kind == "gpt2":
        d = config["n_embd"]
        return ModelShape(
            "gpt2", config["vocab_size"], d, config["n_layer"], config["n_head"], config["n_head"], d // config["n_head"],
            config.get("n_inner") or 4 * d, config["n_positions"], tied=config.get("tie_word_embeddings", True),
        )  # fmt: skip
    if kind not in ("llama", "mistral", "mixtral"):
        raise ValueError(
            f"model_type must be gpt2, llama, mistral or mixtral to be planned, is {kind!r}; take another model"
        )
    d, heads, sparse = config["hidden_size"], config["num_attention_heads"], kind == "mixtral"
    return ModelShape(
        "llama", config["vocab_size"], d, config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads,
        config.get("head_dim") or d // heads, config["intermediate_size"], config["max_position_embeddings"],
        experts=config["num_local_experts"] if sparse else 0,
        experts_per_token=config["num_experts_per_tok"] if sparse else 0,
        tied=config.get("tie_word_embeddings", False),
    )  # fmt: skip


def from_tiny(config: TinyConfig) -> ModelShape:
    """The shape of the small model that a run builds; its tokenizer may turn out smaller than `vocabulary`."""
    size, heads = config.hidden // config.heads, config.heads
    if config.shape == "gpt2":
        return ModelShape(
            "gpt2", config.vocabulary, config.hidden, config.layers, heads, heads, size, 4 * config.hidden, config.context,
            tied=True,
        )  # fmt: skip
    sparse = config.shape == "mixtral"
    return ModelShape(
        "llama", config.vocabulary, config.hidden, config.layers, heads, max(heads // 2, 1), size, 2 * config.hidden,
        config.context, experts=config.experts if sparse else 0, experts_per_token=config.experts_per_token if sparse else 0,
    )  # fmt: skip


def _mistral(vocabulary: int) -> ModelShape:
    return ModelShape("llama", vocabulary, 4096, 32, 32, 8, 128, 14336, 32768)


def _gpt2(hidden: int, layers: int, heads: int) -> ModelShape:
    return ModelShape("gpt2", 50257, hidden, layers, heads, heads, hidden // heads, 4 * hidden, 1024, tied=True)


def _llama2(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int) -> ModelShape:
    return ModelShape("llama", 32000, hidden, layers, heads, kv_heads, 128, feed_forward, 4096)


# Published shapes by the beginning of the hub id, lower case, without its owner. Jiang et al. 2023 (arXiv:2310.06825,
# table 1; v0.3 extends the vocabulary to 32768: its model card); Jiang et al. 2024 (arXiv:2401.04088, table 1); Radford et al.
# 2019 (GPT-2, table 2, heads of 64); Touvron et al. 2023 (arXiv:2307.09288, table 1, and the model cards' config.json).
KNOWN: dict[str, ModelShape] = {
    "mistral-7b-v0.3": _mistral(32768),
    "mistral-7b-instruct-v0.3": _mistral(32768),
    "mistral-7b": _mistral(32000),
    "mixtral-8x7b": ModelShape("llama", 32000, 4096, 32, 32, 8, 128, 14336, 32768, experts=8, experts_per_token=2),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt2": _gpt2(768, 12, 12),
    "llama-2-7b": _llama2(4096, 32, 32, 32, 11008),
    "llama-2-13b": _llama2(5120, 40, 40, 40, 13824),
    "llama-2-70b": _llama2(8192, 80, 64, 8, 28672),
}


def find_shape(path: str, tiny: TinyConfig, cached: Path | None = None) -> tuple[ModelShape, str]:
    """The shape of `model.path` and where it was found: a folder's config.json, the hub's cache (`cached`: its folder), the
    table of published shapes; "" is `tiny`. Raises ValueError when it is in none."""
    if not path:
        return from_tiny(tiny), f"a small {tiny.shape}, built by the run"
    folder = Path(path) if Path(path).is_dir() else cached
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path {folder} has no config.json; give a model's folder")
        return from_config(json.loads((folder / "config.json").read_text(encoding="utf-8"))), f"{folder}/config.json"
    name = path.rstrip("/").rpartition("/")[2].lower()
    for known in sorted(KNOWN, key=len, reverse=True):
        if name == known or name.startswith((f"{known}-", f"{known}_")):
            return KNOWN[known], f"the published shape of {known}"
    raise ValueError(
        f"model.path {path!r} is no folder, not in the hub's cache and of no known shape; give a folder with a "
        f"config.json, or one of {', '.join(KNOWN)}"
    )
