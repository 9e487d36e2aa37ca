"""How much of a LoRA update reaches engines that hold merged bfloat16 weights: `python -m tests.benchmarks.rounding`.

A merged weight is bf16(W + B A s). Where an element of B A s is less than half of the last bit of W's, it is rounded away. Here W
is normal with the standard deviation of a large model's (.02) or of its smallest matrices (.003), A is as PEFT begins it, and every
element of B has moved by `drift` of the learning rate at each update, as under AdamW; rank, alpha and rate are the GPU recipes'.
`arrives` is the projection of what was published on what was meant, `error` the relative error of its effect on random inputs.
"""

from __future__ import annotations

import math

import torch

SIZE, FAN_IN, RANK, ALPHA, RATE, UPDATES_A_STEP = 2048, 4096, 16, 32.0, 1.4e-5, 8


def main() -> None:
    torch.manual_seed(0)
    print(f"{'W std':>6} {'steps':>6} {'drift':>6} {'changed':>8} {'arrives':>8} {'error':>6}")
    for std in (0.02, 0.003):
        base = (torch.randn(SIZE, SIZE) * std).bfloat16()
        a_RI = ((torch.rand(RANK, SIZE) * 2 - 1) / math.sqrt(FAN_IN)).bfloat16().float()
        inputs = torch.randn(SIZE, 64)
        for steps in (1, 10, 50):
            for drift in (1.0, 0.3):
                moved = torch.randn(SIZE, RANK).sign() * RATE * UPDATES_A_STEP * steps * drift
                meant = moved.bfloat16().float() @ a_RI * ALPHA / RANK
                came = (base.float() + meant).bfloat16().float() - base.float()
                changed = float((came != 0).float().mean())
                arrives = float((came * meant).sum() / meant.square().sum())
                error = float(((came - meant) @ inputs).norm() / (meant @ inputs).norm())
                print(f"{std:6} {steps:6} {drift:6} {changed:8.2f} {arrives:8.2f} {error:6.2f}")


if __name__ == "__main__":
    main()
