"""Recipe files: where they are, and which job each is of. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from cluster.settings import SettingsError, read_recipe
from rl.config import PpoRecipe
from rl.sft_config import SftRecipe

HERE = Path(__file__).parent
_TYPES: dict[str, type[PpoRecipe] | type[SftRecipe]] = {"ppo": PpoRecipe, "sft": SftRecipe}


def find(word: str, folder: str = "recipes") -> Path:
    """The TOML file that `word` names: a path, or a shipped one of rl/FOLDER. Raises SettingsError when there is none."""
    shipped = HERE / folder / f"{word}.toml"
    path = shipped if shipped.is_file() else Path(word)
    if not path.is_file():
        raise SettingsError(
            f"{folder[:-1]} {word!r} does not exist: {word!r} must be one of the shipped {folder} {_shipped(folder)}; "
            f"or give the path of a .toml {folder[:-1]}"
        )
    return path


def recipe_path(words: Sequence[str], command: str) -> Path:
    """The recipe that the first word names."""
    if not words or words[0].startswith("--"):
        raise SettingsError(f"{command} needs a recipe: a .toml file, or one of the shipped {_shipped('recipes')}")
    return find(words[0])


def _shipped(folder: str) -> str:
    return ", ".join(sorted(path.stem for path in (HERE / folder).glob("*.toml")))


def job_of(recipe: Path, jobs: Collection[str] = _TYPES.keys()) -> str:
    """What the recipe's key `job` says; "ppo" when it says nothing."""
    job = read_recipe(recipe).get("job", "ppo")
    if job not in jobs:
        raise SettingsError(f"{recipe}: job must be one of {', '.join(jobs)}, is {job!r}; correct it")
    return str(job)


def recipe_type(job: str) -> type[PpoRecipe] | type[SftRecipe]:
    """The settings of a job."""
    return _TYPES[job]
