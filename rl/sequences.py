"""Training sequences: their file, the order in which they are drawn, and how several are packed into one row.

Axes: R rows, S tokens, T = S - 1 positions (position t predicts token t + 1).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rollout.chat import Example

_SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32())), ("mask", pa.list_(pa.bool_()))])


class Rows(NamedTuple):
    """A micro-batch. `positions_RS` counts from 0 in each sequence; `mask_RT` marks where the next token is trained."""

    tokens_RS: Tensor
    positions_RS: Tensor
    mask_RT: Tensor


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Keep rendered sequences as Parquet: every rank reads them, and so can people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist([e._asdict() for e in examples], _SCHEMA), partial)
    os.replace(partial, path)


def read_examples(path: Path) -> list[Example]:
    """What `write_examples` wrote."""
    table = pq.read_table(path, schema=_SCHEMA)
    columns = (table.column(name).to_pylist() for name in _SCHEMA.names)
    return [Example(tuple(ids), tuple(mask)) for ids, mask in zip(*columns, strict=True)]


def draw(examples: Sequence[Example], batch: int, update: int, seed: int) -> list[Example]:
    """The batch of one update (counted from 0): every example once an epoch, each epoch in an order of its own.

    A function of its arguments, so that nothing about the order needs saving; batches run on over the end of an epoch.
    """
    first = update * batch
    order: list[int] = []
    for epoch in range(first // len(examples), (first + batch - 1) // len(examples) + 1):
        order += random.Random(f"{seed}/{epoch}").sample(range(len(examples)), len(examples))
    start = first % len(examples)
    return [examples[index] for index in order[start : start + batch]]


def shares(examples: Sequence[Example], ranks: int, micro_batch: int) -> list[list[list[Example]]]:
    """Deal a batch to ranks and micro-batches: [rank][micro-batch], the same number of micro-batches on every rank.

    Long with long, so that little is padding. A micro-batch may be empty when the batch does not divide.
    """
    ordered = sorted(examples, key=lambda example: -len(example.token_ids))
    count = -(-len(ordered) // (ranks * micro_batch))
    slots = [ordered[k::ranks] for k in range(ranks)]
    return [[held[m * micro_batch : (m + 1) * micro_batch] for m in range(count)] for held in slots]


def lay_out(examples: Sequence[Example], *, capacity: int, packed: bool) -> Rows:
    """A micro-batch as tensors: a row an example, or (packed) rows of at most `capacity` tokens filled first-fit.

    Packed sequences do not see each other: positions begin again at 0 in each, from which transformers builds a
    block-diagonal causal mask; the last token of one never predicts the first of the next. Pads are trained nowhere.
    """
    if packed:
        longest_first = sorted(examples, key=lambda e: -len(e.token_ids))
        rows = pack([len(example.token_ids) for example in longest_first], capacity)
        bins = [[longest_first[k] for k in row] for row in rows]
    else:
        bins = [[example] for example in examples]
    if not bins:  # a rank without rows still takes part in the collectives
        bins = [[Example((0, 0), (False, False))]]
    width = max(sum(len(e.token_ids) for e in held) for held in bins)
    tokens_RS = torch.zeros(len(bins), width, dtype=torch.int64)
    positions_RS = torch.zeros_like(tokens_RS)
    trained_RS = torch.zeros_like(tokens_RS, dtype=torch.bool)
    for row, held in enumerate(bins):
        start = 0
        for example in held:
            stop = start + len(example.token_ids)
            tokens_RS[row, start:stop] = torch.tensor(example.token_ids)
            positions_RS[row, start:stop] = torch.arange(stop - start)
            trained_RS[row, start:stop] = torch.tensor(example.mask)
            trained_RS[row, start] = False
            start = stop
        positions_RS[row, start:] = torch.arange(width - start)
    return Rows(tokens_RS, positions_RS, trained_RS[:, 1:])


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens, filled first-fit in the order of `lengths`: the indices of what each row holds.

    What is longer than `capacity` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        fits = next((k for k, free in enumerate(room) if free >= length), None)
        if fits is None:
            rows.append([index])
            room.append(capacity - length)
        else:
            rows[fits].append(index)
            room[fits] -= length
    return rows


def trained_tokens(examples: Iterable[Example]) -> int:
    """Tokens that a loss over `examples` averages."""
    return sum(sum(example.mask[1:]) for example in examples)
