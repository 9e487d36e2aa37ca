"""The layers of the packages, the quarantine of what ages fastest, and what the light modules may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("rl", "eval", "rewards", "rollout", "cluster")  # each may import itself and those to its right
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "ray")


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that `source` imports anywhere, in functions too; relative ones as seen from `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield ".".join([*stem, *([node.module] if node.module else [])])


def tops(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return {name.partition(".")[0] for name in imports(path.read_text(encoding="utf-8"), package)}


def importers(*vendors: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in FILES if tops(path) & set(vendors)}


def test_the_walker_sees_every_form_of_import() -> None:
    """Plain, dotted, renamed, nested, conditional and relative imports are all seen, or the other tests are blind."""
    source = """
import ray, wandb as w
import torch.nn.functional
from vllm.config import X
from . import sibling
from ..zero import Engine
if False:
    import mlflow
def f():
    from deepspeed import y
"""
    expected = {"ray", "wandb", "torch.nn.functional", "vllm.config", "rl.sub", "rl.zero", "mlflow", "deepspeed"}
    assert set(imports(source, "rl.sub")) == expected


def test_packages_import_only_to_their_right() -> None:
    """rl > eval > rewards > rollout > cluster: no module imports from a layer above its own, nor from the tests."""
    wrong = []
    for path in FILES:
        own = LAYERS.index(path.relative_to(ROOT).parts[0])
        wrong += [f"{path.relative_to(ROOT)} imports {top}" for top in tops(path) & {*LAYERS[:own], "tests"}]
    assert not wrong


def test_vendors_stay_in_their_rooms() -> None:
    """What ages fastest is imported in its own modules only, lazily or not."""
    assert importers("vllm") == {"rollout/vllm_engine.py", "rollout/vllm_weights.py"}
    assert importers("deepspeed") == {"rl/zero.py"}
    assert importers("wandb", "mlflow") == {"cluster/tracking.py"}
    rooms = (
        "cluster/*.py",
        "*/fleet.py",
        "rl/sft.py",
        "rl/sweep*.py",
        "rl/ppo.py",
        "rewards/experts/surrogate_actor.py",
    )
    with_ray = importers("ray")
    assert "cluster/pool.py" in with_ray
    assert not {name for name in with_ray if not any(fnmatch(name, room) for room in rooms)}


def test_modules_are_short_and_say_what_they_hold() -> None:
    """No module is over 400 lines, and none has a name that would take in anything."""
    vague = {"utils", "util", "helpers", "common", "base", "manager", "strategy"}
    assert len(FILES) > 40
    assert not {str(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert not {str(path) for path in FILES if vague & {*path.relative_to(ROOT).with_suffix("").parts}}


def loaded(program: str) -> list[str]:
    """The heavy packages that a fresh interpreter has loaded when `program` is through."""
    program = f"import sys\n{program}\nprint('LOADED', *sorted(sys.modules.keys() & {set(HEAVY)!r}))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.rpartition("LOADED")[2].split()


def test_a_loaded_package_is_noticed() -> None:
    """The probe of the next tests sees a package that was loaded."""
    assert loaded("import types; sys.modules['torch'] = types.ModuleType('torch')") == ["torch"]


def test_settings_and_vocabulary_are_light() -> None:
    """Every config and types module, and the parser of settings, load nothing heavy."""
    names = {"config.py", "types.py", "engine_config.py", "settings.py", "__main__.py"}
    light = [path for path in FILES if path.name in names]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in light]
    assert {"rl.config", "rewards.types", "rollout.types", "cluster.settings"} <= set(modules)
    assert loaded("\n".join(f"import {module}" for module in modules)) == []


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "ppo --help",
        "ppo local --help",
        "sft --help",
        "sweep --help",
        "demo --help",
        "evaluate --help",
        "compare --help",
    ],
)
def test_help_is_light(words: str) -> None:
    """Whoever asks for help gets it, with exit code 0, before anything heavy is loaded."""
    program = f"""
import contextlib, io, runpy
sys.argv = ["attune", *{words.split()!r}]
said = io.StringIO()
try:
    with contextlib.redirect_stdout(said):
        runpy.run_module("rl", run_name="__main__")
except SystemExit as ending:
    assert ending.code == 0, ending.code
assert len(said.getvalue().splitlines()) > 5, said.getvalue()
"""
    assert loaded(program) == []
