"""`attune plan`'s memory model against measurement: `python -m tests.benchmarks.plan [--from 0] [--cases 19] [--out FILE.json]`.

Every case is a learner of its own process and one rank, on the shipped local recipe with a model of a few million parameters:
predicted and measured peak of tensor bytes over a step, and how much of it is not there between steps. On CPU the measure is
what lives before the step plus every allocation that torch's profiler reports during it; with CUDA it is
`torch.cuda.max_memory_allocated`. The resident set's growth is shown beside it: it holds the profiler's records too, and
fragments. Exits 1 when a prediction is more than 10 % off.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.memory_case import Case, measure

TOLERANCE = 0.1
BOTH = ("experts.gate_up_proj", "experts.down_proj")
BIG = {"hidden": 256, "feed_forward": 1024, "rows": 4}
CASES = (
    Case("mistral", "full"),
    Case("mistral", "full", **BIG, checkpointing=True, layers=8, zero_stage=2),
    Case("mistral", "full", zero_stage=3, dtype="bfloat16"),
    Case("mistral", "lora", rows=2, prompt=480),
    Case("mistral", "lora", **BIG, checkpointing=True, layers=8, dtype="bfloat16", zero_stage=3),
    Case("mistral", "lora", vocabulary=16000, reply=128, layers=2),
    Case("mixtral", "full", rows=2, zero_stage=2, dtype="bfloat16"),
    Case("mixtral", "full", checkpointing=True, experts=8),
    Case("mixtral", "lora", **BIG, zero_stage=2),
    Case("mixtral", "lora", **BIG, checkpointing=True, layers=8, dtype="bfloat16", zero_stage=3),
    Case("gpt2", "full", rows=8, prompt=96, zero_stage=3),
    Case("gpt2", "lora", **BIG, dtype="bfloat16", zero_stage=2),
    Case("mistral", "full", job="sft", zero_stage=2),
    Case("gpt2", "lora", job="sft", checkpointing=True, layers=8, vocabulary=4000),
    Case("mixtral", "lora", rows=2, stacks=BOTH, zero_stage=2),
    Case("mixtral", "lora", **BIG, checkpointing=True, stacks=BOTH, dtype="bfloat16", zero_stage=3),
    Case("mixtral", "lora", rows=2, experts=8, stacks=BOTH[:1]),
    Case("mistral", "lora", rows=8, packed=4, prompt=32, reply=128, vocabulary=2000),
    Case("gpt2", "full", rows=8, packed=8, prompt=64, reply=96, checkpointing=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first case, counted from 0")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many, from that one")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    print(
        f"{'predicted':>10}{'measured':>10}{'between':>10}{'resident':>10}{'error':>8}  case (MB of 1e6; phase of the peak)"
    )
    rows, wrong = [], 0
    for case in CASES[asked.first : asked.first + asked.cases]:
        found = measure(case)
        wrong += abs(found.error) > TOLERANCE
        sizes = (found.predicted, found.peak, found.rest, found.resident_growth)
        numbers = "".join(f"{count / 1e6:10.1f}" for count in sizes)
        print(f"{numbers}{found.error:+8.1%}  {case} ({found.phase})", flush=True)
        rows.append({**asdict(case), **asdict(found), "error": found.error})
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error {worst:.1%} of {len(rows)} cases; {wrong} beyond {TOLERANCE:.0%}")
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
