from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rewards.config import CustomConfig, RewardsConfig
from rewards.custom import Custom
from rewards.panel import Panel, ask
from rewards.types import RewardError, Score
from tests.one_term import one_term
from tests.reward_replies import GOOD, prompt, reply

MODULE = """
import numpy as np
from rewards.types import Score

def words(rollouts):
    return [len(r.text.split()) / 10 for r in rollouts]

def array(rollouts):
    return np.array([0.25] * len(rollouts), dtype=np.float32)

def scores(rollouts):
    return [Score(0.5, {"length": 3.0}, ("rude",), {"cost": 2.0}) for _ in rollouts]

class Scorer:
    def __call__(self, rollouts):
        return (1 for _ in rollouts)

scorer = Scorer()
number = 5

def one(rollouts):
    return [0.5]

def text(rollouts):
    return ["good"] * len(rollouts)

def nothing(rollouts):
    return [None] * len(rollouts)

def nan(rollouts):
    return [float("nan")] * len(rollouts)

def above(rollouts):
    return [Score(1.5)] * len(rollouts)

def fails(rollouts):
    raise KeyError("weights")

def not_a_sequence(rollouts):
    return 0.5
"""
TWO = [reply("one two three", sample=0), reply("", sample=1)]


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_rewards"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "terms.py").write_text(MODULE)
    (package / "broken.py").write_text("1 / 0")
    (package / "lame.py").write_text("import no_such_module_of_mine")
    (package / "wrong.py").write_text("def f(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_rewards"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("words", [Score(0.3), Score(0.0)]),
        ("array", [Score(0.25), Score(0.25)]),
        ("scores", [Score(0.5, {"length": 3.0}, ("rude",), {"cost": 2.0})] * 2),
        ("scorer", [Score(1.0), Score(1.0)]),
    ],
)
def test_a_callable_scores_with_numbers_or_scores(name: str, expected: list[Score]) -> None:
    """Floats, numpy numbers, an iterable and whole Scores are taken, in order; an object with __call__ is a callable."""
    term = Custom(CustomConfig(path=f"my_rewards.terms:{name}"))
    assert term.score(TWO) == expected
    assert all(type(s.value) is float for s in term.score(TWO))
    assert all(term.applies(r) for r in (*TWO, reply(GOOD, prompt("I lost my keys."))))


def test_its_parts_and_flags_are_those_of_any_term() -> None:
    """In the panel, parts and notes of a returned Score are logged under the term's name, and its flags join the gate's."""
    [measured] = Panel(one_term("custom", CustomConfig(1.0, "my_rewards.terms:scores"))).measure([reply(GOOD)])
    assert measured.parts["custom"] == 0.5 and "rude" in measured.flags
    assert (measured.notes["custom/length"], measured.notes["custom/cost"]) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one", r"terms:one must give one score per reply, got 1 for 2"),
        ("text", r"terms:text must give a number or a Score, got 'good' for fixed/hopeless/0"),
        ("nothing", r"must give a number or a Score, got None for fixed/hopeless/0"),
        ("nan", r"custom must give a value in \[0, 1\], got nan for fixed/hopeless/0"),
        ("above", r"custom must give a value in \[0, 1\], got 1\.5"),
        ("fails", r"custom failed on 2 replies from fixed/hopeless/0 on: KeyError: 'weights'"),
        ("not_a_sequence", r"custom failed .*TypeError: 'float' object is not iterable"),
    ],
)
def test_a_callable_that_breaks_the_contract_is_an_error(name: str, words: str) -> None:
    """A wrong count, no number, NaN, a value outside [0, 1] and an exception raise a RewardError that says so."""
    with pytest.raises(RewardError, match=words):
        ask("custom", Custom(CustomConfig(path=f"my_rewards.terms:{name}")), TWO)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "my_rewards.nowhere:f",
            r"No module named 'my_rewards\.nowhere'\): install it, or put its folder on PYTHONPATH",
        ),
        ("my_rewards.lame:f", r"No module named 'no_such_module_of_mine'\): install it"),
        ("my_rewards.terms:nowhere", r"has no attribute 'nowhere'\): check the name after the colon"),
        ("my_rewards.terms:number", r"number is a int\): name a function"),
        ("my_rewards.broken:f", r"ZeroDivisionError: division by zero\): its module must import without errors"),
        ("my_rewards.wrong:f", r"SyntaxError: "),
        (":f", r"name the module and, after a colon, the callable"),
        ("my_rewards.terms:", r"name the module and, after a colon, the callable"),
        ("", r"name the module and, after a colon, the callable"),
    ],
)
def test_a_path_to_no_callable_is_refused_when_the_term_is_built(path: str, words: str) -> None:
    """What cannot be imported or called raises a ValueError that names the setting, the path, the cause and a remedy."""
    with pytest.raises(ValueError) as refusal:
        Custom(CustomConfig(path=path))
    said = str(refusal.value)
    assert said.startswith(f'rewards.custom.path must be "package.module:name" of a callable, got {path!r}')
    assert re.search(words, said), said


def test_a_path_without_its_colon_is_refused_by_the_settings() -> None:
    """No colon, two colons, or a term in use without a path raise a ValueError that names the setting."""
    for build in (
        lambda: CustomConfig(path="my_rewards.terms.words"),
        lambda: CustomConfig(path="a:b:c"),
        lambda: RewardsConfig(custom=CustomConfig(weight=1.0)),
    ):
        with pytest.raises(ValueError, match=r"^rewards\.custom\.path must be .*got "):
            build()
