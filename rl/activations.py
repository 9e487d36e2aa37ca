"""How many bytes of activations a backward pass keeps, from a model's shape. Imports no torch.

Counted from what transformers' layers save for autograd with SDPA attention and grouped matrix products, and checked against
allocations (`python -m tests.benchmarks.plan`). Sizes are per token; d hidden, q queries, k keys, f feed-forward.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rl.model_shape import ModelShape

Entropy = Literal["", "measured", "learned"]  # of the policy, in an update: none, a metric, a term of the loss

_ATTENTION_INPUTS = frozenset(("q_proj", "k_proj", "v_proj", "c_attn"))


class Trained(NamedTuple):
    """What of the model trains: all weights (`rank` 0), or adapters of `rank` on the modules `targets` and on whole `stacks` of
    experts."""

    rank: int = 0
    targets: frozenset[str] = frozenset()
    stacks: frozenset[str] = frozenset()

    @property
    def full(self) -> bool:
        return self.rank == 0

    def touches(self, *names: str) -> bool:
        """Whether one of the modules `names` keeps its inputs for a weight's gradient."""
        return self.full or bool((self.targets | self.stacks).intersection(names))


class LayerBytes(NamedTuple):
    """One decoder layer, per token: what it keeps for its backward pass, and the most that this pass then adds."""

    kept: float
    added: float


def layer_bytes(shape: ModelShape, trained: Trained, width: int, *, masked: bool = False) -> LayerBytes:
    """Bytes per token of one layer; with an attention mask (`masked`) keys and values are repeated for every query's head."""
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
        attention = width * (inputs + 2 * q + 2 * (q if masked else k)) + 4 * shape.heads
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
    # one product of rank numbers per token and module; stacks are folded before they multiply, and have none
    adapters = width * trained.rank * sum(name.rpartition(".")[2] in trained.targets for name in shape.modules)
    pairs_f = f * max(shape.experts_per_token, 1)
    # while the gated product, or GELU, is taken back: its gradient and those of its two factors, beside what is kept
    added = width * ((2 if keeps_product else 3) * pairs_f + d)
    return LayerBytes(norms + attention + feed_forward + adapters, added)


def folded_stacks(shape: ModelShape, trained: Trained, width: int) -> dict[str, float]:
    """Bytes of W + B A of each stack of experts of a layer that has adapters, by the stack's name: PEFT makes it before it
    multiplies, and autograd keeps it whole."""
    return {name: width * shape.experts * i * o for name, (i, o) in shape.stacks.items() if name in trained.stacks}


def largest_gradient(shape: ModelShape, trained: Trained, width: int) -> float:
    """The most bytes that gradients of a layer's weights add at once; one of a whole stack of experts counts as one."""
    if trained.full:
        return width * max(i * o * max(shape.experts, 1) for i, o in (shape.stacks or shape.modules).values())
    highest = freed = 0.0
    for size in reversed(folded_stacks(shape, trained, width).values()):  # backward: what multiplied last comes first
        highest, freed = max(highest, size - freed), freed + size  # a folded stack goes when its gradient is there
    return highest


class PassBytes(NamedTuple):
    """Forward and backward of a micro-batch: what waits for its layer's turn, and the most that a layer then holds beside it."""

    waiting: float
    passing: float


def pass_bytes(
    shape: ModelShape, trained: Trained, tokens: float, *, width: int, checkpointing: bool, pairs: float = 0.0
) -> PassBytes:
    """Of `tokens` tokens, without the output layer's logits, whose turn is over when the layers' begins.

    With gradient checkpointing every layer's input waits, and a layer is computed again as if without. `pairs` (of tokens, R x W x
    W) are those of an attention mask: each layer's SDPA makes the booleans a mask of the weights' type, and keeps it.
    """
    layer = layer_bytes(shape, trained, width, masked=pairs > 0)
    kept = tokens * layer.kept + sum(folded_stacks(shape, trained, width).values()) + pairs * width
    wide = max(tokens * layer.added, largest_gradient(shape, trained, width))
    if checkpointing:
        return PassBytes(tokens * shape.layers * shape.hidden * width, kept + wide)
    return PassBytes(shape.layers * kept, wide)


def forward_bytes(shape: ModelShape, trained: Trained, tokens: float, positions: float, *, width: int) -> float:
    """The most of a forward pass that keeps nothing: a layer, or the output layer's logits, log-softmax and softmax."""
    layer = tokens * layer_bytes(shape, trained, width).kept + sum(folded_stacks(shape, trained, width).values())
    return max(layer, positions * shape.vocabulary * 4 * 3)


def logits_bytes(shape: ModelShape, positions: float, *, entropy: Entropy) -> float:
    """The most that the output layer and what follows it hold in float32, of `positions` trained positions.

    Cross-entropy alone has log-softmax and two gradients; an entropy that is measured has logits, log-softmax, softmax and their
    product; one that is learned logits, log-softmax, softmax and three gradients.
    """
    return {"": 3, "measured": 4, "learned": 6}[entropy] * positions * shape.vocabulary * 4
