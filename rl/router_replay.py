"""Router replay: the learner's experts are those that the engine chose (Ma et al. 2025, "Stabilizing MoE Reinforcement
Learning by Aligning Training and Inference Routers", arXiv:2510.11370).

Engine and learner compute with different kernels; where two experts are nearly equal they choose differently, and the log-probs
of a token then differ by far more than rounding. Under replay the choice is the engine's, and its weights the learner's:

    g_k = softmax(x W)_k / sum over the replayed k' of softmax(x W)_k'

so that the router still gets a gradient. Axes: R rows, W tokens, N = R x W, L MoE layers, E experts, k per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FREE = -1  # where the engine chose nothing (a row's last token, pads): the router's own choice


class RouterReplay:
    """Lets the routers of `model` be told what to choose; one that has none can only be told nothing."""

    def __init__(self, model: nn.Module) -> None:
        from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter  # the driver loads this module too

        self._routers = [module for module in model.modules() if isinstance(module, MixtralTopKRouter)]
        self._chosen_RWLk: Tensor | None = None
        for layer, router in enumerate(self._routers):
            router.register_forward_hook(self._hook(layer))

    def tell(self, chosen_RWLk: Tensor | None) -> None:
        """What the next forward passes use, position by position of their rows; None or no layer: the routers' own choice.

        It holds until the next call, since under gradient checkpointing the backward pass asks the routers again.
        """
        if chosen_RWLk is None or chosen_RWLk.shape[2] == 0:
            self._chosen_RWLk = None
            return
        assert chosen_RWLk.shape[2] == len(self._routers), (chosen_RWLk.shape, len(self._routers))
        self._chosen_RWLk = chosen_RWLk

    def _hook(self, layer: int) -> Any:
        def replay(router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
            if self._chosen_RWLk is None:
                return None
            logits_NE, _, own_Nk = output
            chosen_Nk = replayed(own_Nk, self._chosen_RWLk[:, :, layer].flatten(0, 1))
            scores_Nk = logits_NE.float().softmax(-1).gather(1, chosen_Nk)
            return logits_NE, scores_Nk / scores_Nk.sum(-1, keepdim=True), chosen_Nk

        return replay


def replayed(own_Nk: Tensor, chosen_Nk: Tensor) -> Tensor:
    """`chosen_Nk` where it is not FREE, else the router's own choice."""
    return torch.where(chosen_Nk == FREE, own_Nk, chosen_Nk.to(own_Nk.dtype))
