"""A model's folder as transformers and vLLM load it: is it whole, and how large? Reads headers, not weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))


class ModelFiles(NamedTuple):
    """Numbers in the safetensors files (0: there are none to count), and what is wrong: "lacks config.json", ..."""

    parameters: int
    problems: tuple[str, ...]


def model_files(folder: Path) -> ModelFiles:
    """Look at `folder`: config.json, a tokenizer, and every tensor that the weights' index names, in whole shards.

    Weights in pickled files only are neither counted nor looked into.
    """
    problems = [_json_problem(folder / "config.json", "model_type")]
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        problems.append(_json_problem(tokenizer, "model"))
    elif not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        problems.append("has no tokenizer (tokenizer.json)")
    if (folder / WEIGHTS).exists():  # transformers prefers it, whatever an index says
        weight_map, shards = dict[str, str](), {WEIGHTS}
    elif (folder / INDEX).exists():
        problem = _json_problem(folder / INDEX, "weight_map")
        problems.append(problem)
        weight_map = {} if problem else json.loads((folder / INDEX).read_text())["weight_map"]
        shards = set(weight_map.values())
    else:
        weight_map, shards = {}, set()
        if not any((folder / name).exists() for name in PICKLED):
            problems.append(f"has no {WEIGHTS} and no {INDEX}")
    numbers: dict[str, dict[str, int]] = {}
    for shard in sorted(shards):
        if not (folder / shard).is_file():
            problems.append(f"lacks {shard}")
            continue
        try:
            numbers[shard] = _tensor_sizes(folder / shard)
        except SafetensorError as error:
            problems.append(f"holds a damaged {shard} ({error})")
    lost = sorted(name for name, shard in weight_map.items() if shard in numbers and name not in numbers[shard])
    if lost:
        problems.append(f"lacks {len(lost)} tensors that {INDEX} names, such as {lost[0]}")
    return ModelFiles(sum(sum(sizes.values()) for sizes in numbers.values()), tuple(filter(None, problems)))


def _json_problem(path: Path, key: str) -> str:
    if not path.is_file():
        return f"lacks {path.name}"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"holds a damaged {path.name} ({error})"
    return "" if isinstance(content, dict) and key in content else f"holds a {path.name} without {key!r}"


def _tensor_sizes(path: Path) -> dict[str, int]:
    with safe_open(path, framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {name: math.prod(shape) for name, shape in shapes.items()}
