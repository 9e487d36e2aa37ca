"""Searches as they are asked for: what cannot work is one line before anything starts, and the rest is laid out whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.settings import SettingsError
from rl.config import CheckpointConfig, PpoRecipe
from rl.recipe_files import HERE
from rl.sft_config import SftRecipe
from rl.sweep import sweep
from rl.sweep_config import HELP, Plan, SweepConfig, read_plan
from rl.sweep_space import Choice, Range, read_space

ROOT = Path(__file__).parents[1]
KINDS = {"ppo": PpoRecipe, "sft": SftRecipe}
# a recipe that each shipped sweep is for
SHIPPED = {
    "chatmgl_table2": "sft_gpt2_hope",
    "chatmgl_table2_local": "sft_gpt2_local",
    "context_emotion_ablations": "context_emotion_local",
    "delta_tuning": "sft_gpt2_local",
    "ppo_clip_kl_lr": "local",
    "reward_weights": "local",
}


@dataclass(frozen=True)
class Inner:
    size: int = 4
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"inner.share must lie in [0, 1], is {self.share}")


@dataclass(frozen=True)
class Toy:
    job: Literal["toy"] = "toy"
    name: str = "toy"
    runs: str = "runs"
    steps: int = 20
    rate: float = 0.1
    kind: Literal["left", "right"] = "left"
    tags: tuple[str, ...] = ("a",)
    inner: Inner = field(default_factory=Inner)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.kind == "right" and self.inner.size > 8:
            raise ValueError(f"inner.size must be at most 8 with kind right, is {self.inner.size}")


class Ask:
    """Plans of a toy recipe: `ask(text, *words)` writes the text as the sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.sweep = folder, folder / "toy.toml", folder / "search.toml"
        self.recipe.write_text('job = "toy"\nrate = 0.2\n[inner]\nsize = 6\n')

    def __call__(self, text: str, *words: str, head: str = 'metric = "loss"\n') -> Plan:
        self.sweep.write_text(head + text)
        return read_plan([str(self.recipe), str(self.sweep), *words], {"toy": Toy, **KINDS})

    def complaint(self, text: str, *words: str, head: str = 'metric = "loss"\n') -> str:
        with pytest.raises(SettingsError) as caught:
            self(text, *words, head=head)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    return Ask(tmp_path)


def test_a_plan_says_what_runs_where(ask: Ask, tmp_path: Path) -> None:
    """Recipe and words become the base; the sweep's name is its file's, unless it or --name says another."""
    plan = ask('[space]\nrate = [0.1, 0.2]\n"inner.size" = [1, 2, 3]\n', "--steps", "9", "--runs", str(tmp_path / "r"))
    assert plan.base == Toy(rate=0.2, steps=9, runs=str(tmp_path / "r"), inner=Inner(size=6))
    assert plan.directory == tmp_path / "r" / "search" and plan.runs == plan.directory / "trials"
    assert not plan.resume and ask('name = "x"\n[space]\nrate = [1.0]').name == "x"
    assert ask('name = "x"\n[space]\nrate = [1.0]', "--name", "y", "--resume").name == "y"
    assert ask("[space]\nrate = [1.0]", "--resume").resume


def test_settings_of_the_search_come_from_the_command_line_too(ask: Ask) -> None:
    """`--sweep.NAME value` wins over the file, and does not reach the trials."""
    text = 'search = "random"\nsamples = 3\n[asha]\ngrace_period = 2\n[space]\nrate = [0.1]\n'
    plan = ask(
        text, "--sweep.samples", "5", "--steps", "7", "--sweep.asha.reduction_factor=2", "--sweep.scheduler", "asha"
    )
    assert (plan.sweep.samples, plan.sweep.asha.grace_period, plan.sweep.asha.reduction_factor) == (5, 2, 2.0)
    assert plan.words == ("--steps", "7") and plan.trials == 5


def test_settings_are_named_flat_or_in_tables(ask: Ask) -> None:
    """`"a.b" = ...`, `a.b = ...` and a table `[space.a]` are the same."""
    flat = ask('[space]\n"inner.size" = [1, 2]\n"inner.share" = [0.5]\n').space
    assert flat == ask("[space]\ninner.size = [1, 2]\ninner.share = [0.5]\n").space
    assert flat == ask("[space.inner]\nsize = [1, 2]\nshare = { choice = [0.5] }\n").space


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("rate = [0.1]\n", 1),
        ("rate = [0.1, 0.2]\ninner.size = [1, 2, 3]\n", 6),
        ('rate = [0.1, 0.2]\ninner.size = [1, 2, 3]\nkind = ["left", "right"]\ntags = [["a"], ["a", "b"]]\n', 24),
    ],
)
def test_a_grid_is_every_combination_once(ask: Ask, text: str, count: int) -> None:
    """Its size is the product of the lists, and its combinations differ."""
    plan = ask(f"[space]\n{text}")
    combinations = [repr(sample) for sample in plan.samples_to_check()]
    assert plan.trials == len(combinations) == len(set(combinations)) == count


def test_laws_are_read(ask: Ask) -> None:
    """Every form of a law, and the values that are tried before anything starts."""
    space = ask(
        'search = "random"\n[space]\nrate = { loguniform = [1e-4, 1] }\ninner.share = { uniform = [0, 1] }\n'
        'inner.size = { randint = [2, 9] }\nkind = { choice = ["left"] }\n'
    ).space
    assert space == {
        "rate": Range("loguniform", 1e-4, 1),
        "inner.share": Range("uniform", 0, 1),
        "inner.size": Range("randint", 2, 9),
        "kind": Choice(("left",)),
    }
    assert space["inner.size"].tried == (2, 8) and space["inner.share"].tried == (0.0, 1.0)


RANDOM = 'search = "random"\nsamples = 2\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["[space]", "at least one setting", "empty"]),
        ("[space]\n", ["[space]", "empty"]),
        ("space = 3\n", ["[space]", "table", "3"]),
        ("[space]\nrat = [0.1]\n", ["'rat'", "none", "did you mean 'rate'?"]),
        ("[space]\ninner.sizes = [1]\n", ["'inner.sizes'", "did you mean 'inner.size'?"]),
        ('[space]\nname = ["a"]\n', ["'name'", "may change"]),
        ("[space]\nrate = []\n", ["rate", "at least one value", "empty"]),
        ("[space]\nrate = 0.1\n", ["rate", "list of choices", "0.1"]),
        ('[space]\nrate = [0.1, "fast"]\n', ["rate = 'fast'", "must be a number", "fast"]),
        ("[space]\nsteps = [1, 2.5]\n", ["steps = 2.5", "whole number"]),
        ('[space]\nkind = ["left", "up"]\n', ["kind = 'up'", "one of left, right"]),
        ("[space]\ninner.share = [0.5, 2.0]\n", ["inner.share = 2.0", "lie in [0, 1]"]),
        ('[space]\ninner.size = [4, 9]\nkind = ["left", "right"]\n', ["inner.size = 9, kind = 'right'", "at most 8"]),
        ("[space]\nrate = { uniform = [0, 1] }\n", ["rate", 'search "grid"', "uniform", "random"]),
        (RANDOM + "[space]\ninner.share = { uniform = [0, 2] }\n", ["inner.share = 2.0", "lie in [0, 1]"]),
        (RANDOM + "[space]\nsteps = { uniform = [1, 5] }\n", ["steps = 1.0", "whole number"]),
        (RANDOM + "[space]\nrate = { uniform = [2, 1] }\n", ["rate", "lower to a higher", "[2, 1]"]),
        (RANDOM + "[space]\nrate = { uniform = [1] }\n", ["rate", "two numbers", "[1]"]),
        (RANDOM + "[space]\nrate = { uniform = [1, inf] }\n", ["rate", "lower to a higher"]),
        (RANDOM + "[space]\nrate = { loguniform = [0, 1] }\n", ["rate", "above 0"]),
        (RANDOM + "[space]\nsteps = { randint = [1.5, 3] }\n", ["steps", "whole ends"]),
        (RANDOM + "[space]\nrate = { normal = [0, 1] }\n", ["rate.normal", "none", "uniform, loguniform, randint, choice"]),
        ("samples = 3\n[space]\nrate = [0.1]\n", ["samples", "1", "grid", "seed"]),
        ('scheduler = "pbt"\n[space]\nrate = [0.1]\n', ["pbt", 'search "random"', "'grid'"]),
        ('search = "optuna"\nscheduler = "pbt"\n[space]\nrate = [0.1]\n', ["pbt", "'optuna'"]),
        ('search = "random"\nscheduler = "pbt"\n[space]\nrate = [0.1]\n', ["samples", "at least 2", "population"]),
        (RANDOM + 'scheduler = "pbt"\n[pbt]\nperturbation_interval = 15\n[space]\nrate = [0.1]\n',
         ["pbt.perturbation_interval", "multiple", "checkpoint.every = 10", "15", "--checkpoint.every 15"]),
        ("[asha]\ngrace_period = 0\n[space]\nrate = [0.1]\n", ["asha.grace_period", "at least 1", "0"]),
        ("[asha]\nreduction_factor = 1\n[space]\nrate = [0.1]\n", ["asha.reduction_factor", "above 1"]),
        ("[asha]\nmax_t = 3\n[space]\nrate = [0.1]\n", ["asha.max_t", "asha.grace_period = 5", "3"]),
        ("[pbt]\nquantile_fraction = 0.6\n[space]\nrate = [0.1]\n", ["pbt.quantile_fraction", "(0, 0.5]", "0.6"]),
        ("[pbt]\nresample_probability = 2\n[space]\nrate = [0.1]\n", ["pbt.resample_probability", "[0, 1]", "2"]),
        ("concurrent = -1\n[space]\nrate = [0.1]\n", ["concurrent", "at least 0", "-1"]),
        ('search = "bayes"\n[space]\nrate = [0.1]\n', ["search", "one of grid, random, optuna", "bayes"]),
        ("sample = 4\n[space]\nrate = [0.1]\n", ["unknown setting 'sample'", "'samples'"]),
        ('name = "a/b"\n[space]\nrate = [0.1]\n', ["name", "'/'", "'a/b'"]),
        ("[space\n", ["not valid TOML"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(ask: Ask, text: str, said: list[str]) -> None:
    """It names the file, the setting, the rule and the value."""
    message = ask.complaint(text)
    assert str(ask.sweep) in message
    assert all(part in message for part in said), message


def test_a_metric_must_be_named(ask: Ask) -> None:
    """Without one the search could judge nothing."""
    assert "metric must name" in ask.complaint("[space]\nrate = [0.1]\n", head="")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "0.3"], ["rate", "searched and on the command line"]),
        (["--rat", "0.3"], ["the command line", "'rat'", "'rate'"]),
        (["--steps", "many"], ["the command line", "steps", "whole number"]),
        (["--sweep.sampels", "3"], ["the command line", "'sampels'", "'samples'"]),
        (["--sweep.concurrent", "x"], ["the command line", "concurrent", "whole number"]),
        (["stray"], ["the command line", "'stray'"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(ask: Ask, words: list[str], said: list[str]) -> None:
    """It is told from a mistake in a file."""
    message = ask.complaint("[space]\nrate = [0.1]\n", *words)
    assert all(part in message for part in said), message


def test_files_that_are_not_there_are_named(ask: Ask) -> None:
    """With the shipped ones, for both; and both are needed."""
    for words in ([], ["local"], ["--steps", "3"], ["local", "--steps"]):
        with pytest.raises(SettingsError, match=r"RECIPE SWEEP\.toml"):
            read_plan(words, KINDS)
    with pytest.raises(SettingsError, match=r"'locale' must be .* recipes .*local"):
        read_plan(["locale", "delta_tuning"], KINDS)
    with pytest.raises(SettingsError, match=r"'delta' must be .* sweeps .*delta_tuning"):
        read_plan(["local", "delta"], KINDS)
    ask.recipe.write_text('job = "tea"\n')
    assert "job must be one of toy, ppo, sft, is 'tea'" in ask.complaint("[space]\nrate = [0.1]\n")


def test_a_recipe_that_is_wrong_is_said_before_the_search(ask: Ask) -> None:
    """Its own mistake is not blamed on the sweep."""
    ask.recipe.write_text('job = "toy"\nrate = "fast"\n')
    message = ask.complaint("[space]\nrate = [0.1]\n")
    assert message.startswith(f"{ask.recipe}: rate must be a number")


def test_every_shipped_sweep_is_sound_for_its_recipe() -> None:
    """Each one parses, its values are settings that run, and the list of the test is the list of the folder."""
    assert {path.stem for path in (HERE / "sweeps").glob("*.toml")} == set(SHIPPED)
    for name, recipe in SHIPPED.items():
        plan = read_plan([recipe, name], KINDS)
        assert plan.name == name and plan.trials >= 8


def test_help_names_every_setting_and_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to read source to write a sweep, or to wait for Ray to learn how."""
    assert sweep(["--help"]) == 0
    assert capsys.readouterr().out.strip() == HELP.strip()
    for name in SweepConfig.__dataclass_fields__:
        assert f"\n  {name}" in HELP, name
    program = "import sys, rl.sweep; rl.sweep.sweep(['--help']); print(sorted({'ray', 'torch'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_a_law_is_checked_by_itself() -> None:
    """A space needs no recipe to be read."""
    with pytest.raises(ValueError, match=r"\[space\] a.b must"):
        read_space({"a": {"b": {"uniform": ["x", 2]}}})
    nested: dict[str, Any] = {"a": {"b": [1, 2], "c": {"d": {"randint": [0, 4]}}}}
    assert read_space(nested) == {"a.b": Choice((1, 2)), "a.c.d": Range("randint", 0, 4)}


def test_pbt_cannot_search_what_a_checkpoint_binds(tmp_path: Path) -> None:
    """A trial that takes over a checkpoint could not resume with another seed: refused before anything starts."""
    sweep = tmp_path / "bound.toml"
    sweep.write_text(
        'metric = "valid/loss"\nmode = "min"\n' + RANDOM + 'scheduler = "pbt"\n[space]\n"sft.batch" = [4, 8]\n'
    )
    with pytest.raises(SettingsError, match=r"sft.batch must not be searched with scheduler"):
        read_plan(["sft_local", str(sweep)], KINDS)
