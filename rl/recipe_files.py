"""Recipe files: where they are, and which job each is of. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.settings import SettingsError, read_recipe
from rl.config import PpoRecipe
from rl.sft_config import SftRecipe

RECIPES = Path(__file__).parent / "recipes"
_TYPES: dict[str, type[PpoRecipe] | type[SftRecipe]] = {"ppo": PpoRecipe, "sft": SftRecipe}


def recipe_path(words: Sequence[str], command: str) -> Path:
    """The file that the first word names: a path, or the name of a shipped recipe."""
    if not words or words[0].startswith("--"):
        shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
        raise SettingsError(f"{command} needs a recipe: a .toml file, or one of the shipped {shipped}")
    path = Path(words[0])
    return RECIPES / f"{path}.toml" if not path.suffix and (RECIPES / f"{path}.toml").is_file() else path


def job_of(recipe: Path) -> str:
    """What the recipe's key `job` says; "ppo" when it says nothing."""
    job = read_recipe(recipe).get("job", "ppo")
    if job not in _TYPES:
        raise SettingsError(f"{recipe}: job must be one of {', '.join(_TYPES)}, is {job!r}; correct it")
    return str(job)


def recipe_type(job: str) -> type[PpoRecipe] | type[SftRecipe]:
    """The settings of a job."""
    return _TYPES[job]
