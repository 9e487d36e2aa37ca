"""Settings: recipe, sample and command line are one parse, and every mistake is one line that says what to change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.settings import SettingsError, flat, help_text, knobs, load, to_json
from rl.config import PpoRecipe
from rl.recipe_files import job_of, recipe_type

RECIPES = Path(__file__).parents[1] / "rl" / "recipes"
# settings that run, whatever the defaults and the shipped recipes say
SOUND = {
    "model.tiny.context": 320,
    "rollout.max_model_len": 320,
    "prompts.max_context_tokens": 256,
    "prompts.per_step": 16,
    "sampling.n": 4,
    "sampling.max_tokens": 48,
    "learner.ranks": 2,
    "ppo.minibatches": 2,
}


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    limit: float | None = 6.0
    names: tuple[str, ...] = ("one", "two words")

    def __post_init__(self) -> None:
        if not -1 <= self.share <= 1:
            raise ValueError(f"inner.share must lie in [-1, 1], is {self.share}; try 0.5")


@dataclass(frozen=True)
class Zoo:
    """One setting of every kind that recipes use."""

    count: int = 1
    on: bool = True
    text: str = ""
    kind: Literal["left", "right"] = "left"
    stage: Literal[0, 1, 2, 3] = 2
    betas: tuple[float, float] = (0.9, 0.95)
    inner: Inner = field(default_factory=Inner)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["--help", "-x", "--", "a=b", "None", "- be kind", "@file", "'quoted' \"twice\"", "-1", "{}", "#"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
zoos = st.builds(
    Zoo,
    count=st.integers(),
    on=st.booleans(),
    text=texts,
    kind=st.sampled_from(["left", "right"]),
    stage=st.sampled_from([0, 1, 2, 3]),
    betas=st.tuples(numbers, numbers),
    inner=st.builds(
        Inner,
        share=st.floats(-1, 1),
        limit=st.none() | numbers,
        names=st.lists(texts, max_size=3).map(tuple),
    ),
)


def toml(value: Any) -> str:
    """A TOML value; JSON's text is TOML's but for the escape of DEL, and None is written as text."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str) or value is None:
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def words(name: str, value: Any) -> list[str]:
    """Command-line words, as a person would write them; `=` where a lone text may begin with dashes."""
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def complaint(*args: Any, kind: type = Zoo, **kwargs: Any) -> str:
    """What is said of wrong settings: always one line."""
    with pytest.raises(SettingsError) as caught:
        load(kind, *args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(deadline=None, max_examples=40)
@given(zoo=zoos)
def test_a_value_means_the_same_wherever_it_is_written(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Recipe, sample and command line give back exactly the settings whose values they state."""
    recipe = tmp_path_factory.mktemp("zoo") / "zoo.toml"
    stated = flat(zoo)
    recipe.write_text("\n".join(f"{name} = {toml(value)}" for name, value in stated.items()), encoding="utf-8")
    assert load(Zoo, recipe) == zoo
    assert load(Zoo, sample=stated) == zoo
    # of several words that follow a name one that begins with two dashes is the next name
    if not any(name.startswith("--") for name in zoo.inner.names):
        assert load(Zoo, argv=[word for name, value in stated.items() for word in words(name, value)]) == zoo


def test_later_sources_win(tmp_path: Path) -> None:
    """Defaults < recipe < sample < command line < further right on the command line, knob by knob."""
    recipe = tmp_path / "zoo.toml"
    recipe.write_text('count = 10\ntext = "recipe"\n[inner]\nshare = 0.1\nlimit = "None"\n')
    sample = {"text": "sample", "inner.share": 0.2, "stage": 3}
    argv = ["--inner.share", "0.3", "--inner.names", "x y", "z", "--kind", "right", "--inner.share=0.4"]
    expected = Zoo(10, True, "sample", "right", 3, inner=Inner(0.4, None, ("x y", "z")))
    assert load(Zoo, recipe, sample=sample, argv=argv) == expected
    assert load(Zoo) == Zoo()
    assert load(Zoo, sample={"on": False}, argv=["--on", "--count", "2"]) == Zoo(2, on=True)


def test_names_are_forgiving_about_dashes_and_samples_about_nesting() -> None:
    """`--inner.two-words` is `--inner.two_words`, and a nested sample is a flat one."""
    assert load(PpoRecipe, sample=SOUND, argv=["--ppo.kl-coef", "0.5"]).ppo.kl_coef == 0.5
    assert load(Zoo, sample={"inner": {"share": 0.25}}) == Zoo(inner=Inner(0.25))


def test_a_tuple_can_be_emptied_and_a_text_too() -> None:
    """No word after a tuple's name is the empty tuple, and `--text=` or an empty word the empty text."""
    assert load(Zoo, argv=["--inner.names", "--count", "2"]) == Zoo(2, inner=Inner(names=()))
    for argv in (["--text="], ["--text", ""]):
        assert load(Zoo, sample={"text": "full"}, argv=argv).text == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cuont", "2"], ["cuont", "did you mean 'count'?"]),
        (["--inner.shares", "2"], ["inner.shares", "did you mean 'inner.share'?"]),
        (["--xyzzy", "2"], ["xyzzy", "known sections: ", "inner"]),
        (["--inner", "2"], ["inner", "unknown"]),
        (["count", "2"], ["count", "--dotted.name"]),
        (["-c", "2"], ["-c", "--dotted.name"]),
        (["--count", "2.5"], ["count", "whole number", "2.5"]),
        (["--count", "two"], ["count", "whole number", "two"]),
        (["--count", "1", "2"], ["count", "whole number", "1 2"]),
        (["--count"], ["count", "whole number", "nothing"]),
        (["--count="], ["count", "whole number"]),
        (["--on", "maybe"], ["on", "True or False", "maybe"]),
        (["--kind", "up"], ["kind", "one of left, right", "up"]),
        (["--stage", "4"], ["stage", "one of 0, 1, 2, 3", "4"]),
        (["--inner.share", "much"], ["inner.share", "a number", "much"]),
        (["--inner.limit", "much"], ["inner.limit", "float | None", "much"]),
        (["--betas", "0.9"], ["betas", "tuple[float, float]", "0.9"]),
        (["--betas", "1", "2", "3"], ["betas", "tuple[float, float]", "1 2 3"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv: list[str], said: list[str]) -> None:
    """It names the source, the dotted knob, the rule and the value."""
    message = complaint(argv=argv)
    assert message.startswith("the command line: ")
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuont = 2", ["cuont", "did you mean 'count'?"]),
        ('count = "two"', ["count", "whole number", "two"]),
        ("count = 50.0", ["count", "whole number", "50.0"]),
        ("count = true", ["count", "whole number", "True"]),
        ("on = 1", ["on", "True or False", "1"]),
        ("inner = 3", ["inner", "unknown"]),
        ("[count]\nx = 1", ["count.x", "did you mean 'count'?"]),
        ("text = ['a', 'b']", ["text", "must be text", "a b"]),
        ("on = true\ncount = two", ["not valid TOML", "line 2"]),
        ("count = 1\ncount = 2", ["not valid TOML"]),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(text: str, said: list[str], tmp_path: Path) -> None:
    """It names the recipe's file, the dotted knob, the rule and the value, even where a later source mends it."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text)
    message = complaint(recipe, argv=["--count", "1"])
    assert str(recipe) in message
    assert all(part in message for part in said), message


def test_a_recipe_is_utf8_whatever_the_machine_speaks(tmp_path: Path) -> None:
    """Text arrives as written, and bytes that are no text are a mistake, not a crash."""
    recipe = tmp_path / "mine.toml"
    recipe.write_bytes('text = "Wie fühlst du dich? — 你好"'.encode())
    assert load(Zoo, recipe).text == "Wie fühlst du dich? — 你好"
    recipe.write_bytes(b'text = "\xff\xfe"')
    message = complaint(recipe)
    assert str(recipe) in message and "not valid TOML" in message


def test_a_missing_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    """The message names the file and its neighbours, or asks for one where there are none."""
    (tmp_path / "mine.toml").write_text("")
    message = complaint(tmp_path / "mien.toml")
    assert str(tmp_path / "mien.toml") in message and "recipes there: mine" in message
    assert "give the path" in complaint(tmp_path / "nowhere" / "mien.toml")
    assert "does not exist" in complaint(tmp_path)


def test_a_mistake_in_a_sample_names_the_search() -> None:
    """A search's own mistake is told from the person's."""
    assert complaint(sample={"cuont": 2}).startswith("the search's sample: unknown setting 'cuont'")
    message = complaint(sample={"inner.share": "x"})
    assert message.startswith("the search's sample: inner.share must be a number") and "'x'" in message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--name", "a/b"], ["name", "'/'", "'a/b'"]),
        (["--steps", "0"], ["steps", "at least 1", "0"]),
        (["--model.lora.rank", "0"], ["model.lora.rank", "at least 1", "0"]),
        (["--model.lora.targets"], ["model.lora.targets", "at least one", "empty"]),
        (["--learner.ranks", "0"], ["learner.ranks", "at least 1", "0"]),
        (["--ppo.gamma", "nan"], ["ppo.gamma", "[0, 1]", "nan"]),
        (["--ppo.policy_lr", "-1e-05"], ["ppo.policy_lr", "above 0", "-1e-05"]),
        (["--ppo.dual_clip", "1"], ["ppo.dual_clip", "above 1", "1", "None turns it off"]),
        (["--checkpoint.every", "0"], ["checkpoint.every", "at least 1", "0"]),
        (["--rewards.length.low", "-5"], ["rewards.length.low", ">= 1", "-5"]),
        (["--sampling.top_p", "0.9"], ["sampling.top_p", "must be 1", "0.9"]),
        (["--corpus.path", "here"], ["corpus.path", "empty", "here", "corpus.format"]),
        (
            ["--sampling.n", "3", "--prompts.per_step", "15"],
            ["prompts.per_step", "45", "divide by ppo.minibatches", "4"],
        ),
        (["--sampling.max_tokens", "400"], ["sampling.max_tokens", "656", "rollout.max_model_len", "320"]),
        (["--sampling.max_tokens", "64"], ["sampling.max_tokens", "320", "rollout.max_model_len", "320"]),
        (["--model.tiny.context", "128"], ["model.tiny.context", "128", "rollout.max_model_len", "320"]),
    ],
)
def test_a_broken_invariant_names_knob_rule_and_value(argv: list[str], said: list[str]) -> None:
    """What no single type can say is still refused at start-up, in one line."""
    message = complaint(kind=PpoRecipe, sample=SOUND, argv=argv)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    "argv",
    [
        ["--name", ".."],
        ["--publish.probes", "0"],
        ["--ppo.kl_horizon", "0"],
        ["--ppo.lr_warmup", "-1"],
        ["--rollout.restarts", "-1"],
        ["--ppo.dual_clip", "nan"],
        ["--model.tiny.layers", "0"],
    ],
    ids=" ".join,
)
def test_settings_that_cannot_run_are_refused(argv: list[str]) -> None:
    """A setting that would end the run later ends it now, and its knob is named."""
    assert argv[0].removeprefix("--") in complaint(kind=PpoRecipe, sample=SOUND, argv=argv)


def test_the_defaults_are_a_recipe() -> None:
    """No setting needs another one to be changed first."""
    assert load(PpoRecipe) == PpoRecipe()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(recipe: Path) -> None:
    """It gives settings whose flat form, as a sample, is the same settings again; its name is its file's."""
    kind = recipe_type(job_of(recipe))
    parsed = load(kind, recipe)
    assert load(kind, sample=flat(parsed)) == parsed
    assert parsed.name == recipe.stem
    json.loads(to_json(parsed))


def test_flat_names_every_knob_once() -> None:
    """`flat` and `knobs` agree on the dotted names, in order."""
    recipe = load(PpoRecipe, sample=SOUND)
    assert list(flat(recipe)) == [name for name, _ in knobs(PpoRecipe)]
    assert flat(recipe)["ppo.betas"] == (0.9, 0.95) and flat(recipe)["model.tiny.context"] == 320


def test_json_holds_every_value() -> None:
    """The saved settings are plain JSON whose leaves are the values, tuples as lists."""
    zoo = Zoo(text='"ü"\n', inner=Inner(limit=None))
    saved = json.loads(to_json(zoo))
    assert load(Zoo, sample=saved) == zoo
    assert saved["inner"] == {"share": 0.5, "limit": None, "names": ["one", "two words"]}


def test_help_names_every_knob_and_its_default() -> None:
    """Nobody has to read source to find a setting."""
    text = help_text(PpoRecipe, "attune ppo")
    assert "usage: attune ppo" in text
    missing = [name for name, _ in knobs(PpoRecipe) if f"--{name} " not in text]
    assert not missing
    assert "(default: 1.4e-05)" in text and "{float32,bfloat16}" in text
