"""Recipes and command lines become one frozen dataclass through one parser (tyro): later sources win.

A recipe is TOML whose tables are the sections of the dataclass. Recipe files, a search's sample and the command line are
all flattened to `--dotted.name value` tokens and parsed together, so a value means the same wherever it is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting is unknown, ill-typed or breaks an invariant; the message names the dotted knob, value and remedy."""


def load(
    kind: type[T],
    recipe: str | Path | None = None,
    *,
    sample: Mapping[str, Any] | None = None,
    origin: str = "the search's sample",
    argv: Sequence[str] = (),
) -> T:
    """Parse `kind` from a recipe file, a sample of dotted names or tables (a Tune trial's, or what `origin` names) and
    command-line tokens.

    Raises SettingsError, naming the first source and knob that is wrong.
    """
    tokens: list[tuple[str, list[str], str]] = []
    if recipe is not None:
        tokens += [(name, values, str(recipe)) for name, values in _flatten(read_recipe(recipe))]
    for name, value in (sample or {}).items():
        tokens += [(dotted, values, origin) for dotted, values in _flatten({name: value})]
    tokens += [(name, values, "the command line") for name, values in overrides(argv)]
    known = dict(knobs(kind))
    for name, _, source in tokens:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known sections: {', '.join(_sections(known))}"
            raise SettingsError(f"{source}: unknown setting {name!r}; {hint}")
    values = {name: _parse_value(name, known[name], words, source) for name, words, source in tokens}
    try:
        return _construct(kind, values)
    except ValueError as error:  # an invariant of some __post_init__: its message names the knob
        raise SettingsError(str(error)) from error


def require_at_least(least: float, section: str, settings: Any, *names: str) -> None:
    """Raise ValueError, naming the knob, when one of the numbers `names` of `settings` is below `least`."""
    for name in names:
        value = getattr(settings, name)
        if not value >= least:
            raise ValueError(f"{section}{name} must be at least {least:g}, is {value}; raise it")


def help_text(kind: type, program: str) -> str:
    """Every setting of `kind` with its type and default, for `--help`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(tyro.conf.FlagConversionOff[kind], prog=program, args=["--help"], use_underscores=True)  # type: ignore[misc,valid-type]
    return text.getvalue()


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML recipe. Raises SettingsError when it is missing or not TOML."""
    path = Path(path)
    if not path.is_file():
        shipped = sorted(p.stem for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = f"recipes there: {', '.join(shipped)}" if shipped else "give the path of a .toml recipe"
        raise SettingsError(f"recipe {str(path)!r} does not exist; {hint}")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"recipe {str(path)!r} is not valid TOML: {error}") from error


def knobs(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted name, type) of a settings dataclass."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from knobs(typing.cast(type, hint), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", hint


def flat(settings: Any) -> dict[str, Any]:
    """The dotted names of a settings instance and their values."""
    flattened = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        nested = (
            {f"{item.name}.{name}": v for name, v in flat(value).items()} if dataclasses.is_dataclass(value) else {}
        )
        flattened.update(nested or {item.name: value})
    return flattened


def to_json(settings: Any) -> str:
    """The resolved settings as JSON, for the run directory."""
    return json.dumps(dataclasses.asdict(settings), indent=1, default=str) + "\n"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def overrides(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The dotted names of a command line and the words after each."""
    name, values = "", list[str]()
    for token in argv:
        if token.startswith("--"):
            if name:
                yield name, values
            name, equals, value = token[2:].partition("=")
            name, values = name.replace("-", "_"), [value] if equals else []
        elif not name:
            raise SettingsError(f"the command line: expected --dotted.name before {token!r}")
        else:
            values.append(token)
    if name:
        yield name, values


def _sections(known: Mapping[str, Any]) -> list[str]:
    return sorted({name.partition(".")[0] for name in known})


def _parse_value(name: str, hint: Any, words: Sequence[str], source: str) -> Any:
    words = _as_on_the_command_line(hint, words)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            leaf = dataclasses.make_dataclass("Leaf", [("value", tyro.conf.Positional[hint])])  # type: ignore[misc]
            # behind "--" no word is an option, so that a text may begin with a dash
            parsed = tyro.cli(tyro.conf.FlagConversionOff[leaf], args=["--", *words], console_outputs=False)  # type: ignore[misc,valid-type]
            return parsed.value
        except SystemExit:
            shown = " ".join(words) or "nothing"
    raise SettingsError(f"{source}: {name} must be {_readable(hint)}, is {shown!r}")


def _as_on_the_command_line(hint: Any, words: Sequence[str]) -> Sequence[str]:
    """Truth values and lists may also be written as a recipe writes them: true, [0.5, 5.0]; a name alone says true."""
    if hint is bool:
        return [word.capitalize() if word in ("true", "false") else word for word in words] or ["True"]
    if len(words) == 1 and words[0].startswith("[") and hint is not str:
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return [str(item) for item in tomllib.loads(f"list = {words[0]}")["list"]]
    return words


def _construct(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hints[item.name]):
            given[item.name] = _construct(typing.cast(type, hints[item.name]), values, f"{name}.")
        elif name in values:
            given[item.name] = values[name]
    return kind(**given)


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return names.get(hint, str(hint).replace("typing.", "").replace("<class '", "").rstrip("'>"))


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """`settings` with the values of some dotted names replaced. Raises ValueError when that breaks an invariant."""
    return _construct(type(settings), {**flat(settings), **changes})
