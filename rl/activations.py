"""How many bytes of activations a backward pass keeps, from a model's shape. Imports no torch.

Counted from what transformers' layers save for autograd with SDPA attention and grouped matrix products, and checked against
allocations (`python -m tests.benchmarks.plan`). Sizes are per token; d hidden, q queries, k keys, f feed-forward.
"""

from __future__ import annotations

from typing import NamedTuple

from rl.model_shape import ModelShape

_ATTENTION_INPUTS = frozenset(("q_proj", "k_proj", "v_proj", "c_attn"))


class Trained(NamedTuple):
    """What of the model trains: all weights (`rank` 0), or adapters of `rank` on the modules `targets`."""

    rank: int = 0
    targets: frozenset[str] = frozenset()

    @property
    def full(self) -> bool:
        return self.rank == 0

    def touches(self, *names: str) -> bool:
        """Whether one of the modules `names` keeps its inputs for a weight's gradient."""
        return self.full or bool(self.targets.intersection(names))


class LayerBytes(NamedTuple):
    """One decoder layer, per token: what it keeps for its backward pass, and the most that this pass then adds."""

    kept: float
    added: float


def layer_bytes(shape: ModelShape, trained: Trained, width: int) -> LayerBytes:
    """Bytes per token of one layer."""
    d, q, k, f = shape.hidden, shape.queries, shape.keys, shape.feed_forward
    if shape.family == "gpt2":
        norms = 2 * (d * width + 2 * width)  # their inputs, mean and deviation
        attention = width * (4 * d + (d if trained.touches(*_ATTENTION_INPUTS) else 0)) + 4 * shape.heads
        keeps_product = trained.touches("c_proj")
        feed_forward = width * (
            4 * f + (d if trained.touches("c_fc") else 0) + (f if keeps_product else 0)
        )  # GELU by its formula
    else:
        unscaled = 2 * d * width if trained.full else 0
        norms = 2 * (4 * d + 4) + unscaled  # RMS norms compute in float32
        inputs = d if trained.touches(*_ATTENTION_INPUTS) else 0
        attention = width * (inputs + 2 * q + 2 * k) + 4 * shape.heads
        keeps_product = trained.touches("down_proj", "experts.down_proj")
        if shape.experts:
            chosen = shape.experts_per_token
            inputs = d * chosen if trained.touches("experts.gate_up_proj") else 0
            inputs += d if trained.full else 0  # the router's
            pairs = chosen * (3 * f + d + (f if keeps_product else 0))
            feed_forward = width * (inputs + pairs) + 4 * shape.experts + 40 * chosen
        else:
            inputs = d if trained.touches("gate_proj", "up_proj") else 0
            feed_forward = width * (3 * f + inputs + (f if keeps_product else 0))
    adapters = 0 if trained.full else width * trained.rank * len(trained.targets)
    pairs_f = f * max(shape.experts_per_token, 1)
    # while the gated product, or GELU, is taken back: its gradient and those of its two factors, beside what is kept
    added = width * ((2 if keeps_product else 3) * pairs_f + d)
    return LayerBytes(norms + attention + feed_forward + adapters, added)


def largest_gradient(shape: ModelShape, trained: Trained, width: int) -> float:
    """Bytes of the largest gradient of one weight of a layer; one of a whole stack of experts counts as one."""
    if not trained.full:
        return 0
    return width * max((i * o * max(shape.experts, 1) for i, o in (shape.stacks or shape.modules).values()), default=0)


class PassBytes(NamedTuple):
    """Forward and backward of a micro-batch: what waits for its layer's turn, and the most that a layer then holds beside it."""

    waiting: float
    passing: float


def pass_bytes(shape: ModelShape, trained: Trained, tokens: float, *, width: int, checkpointing: bool) -> PassBytes:
    """Of `tokens` tokens, without the output layer's logits, whose turn is over when the layers' begins.

    With gradient checkpointing every layer's input waits, and a layer is computed again as if without.
    """
    layer = layer_bytes(shape, trained, width)
    wide = max(tokens * layer.added, largest_gradient(shape, trained, width))
    if checkpointing:
        return PassBytes(tokens * shape.layers * shape.hidden * width, tokens * layer.kept + wide)
    return PassBytes(tokens * shape.layers * layer.kept, wide)


def logits_bytes(shape: ModelShape, positions: float, *, scored: bool) -> float:
    """The most that the output layer and what follows it hold in float32, for `positions` trained positions.

    `scored`: log-probs and entropy of PPO (logits, log-softmax, softmax, two gradients; one more where an entropy bonus is paid);
    else cross-entropy (log-softmax, two gradients).
    """
    return positions * shape.vocabulary * 4 * (5 if scored else 3)
