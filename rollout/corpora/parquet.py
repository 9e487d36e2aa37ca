"""Parquet: one dialogue a row, as `rollout.corpora.rows` describes it, `turns` being a list of structs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, place
from rollout.corpora.rows import Rows, load_files


def load_parquet(path: Path, config: CorpusConfig) -> Corpus:
    """Read one file, or a folder of splits (see `load_files`, also for what is raised)."""
    return load_files(path, config, "parquet", _rows)


def check_columns(schema: pa.Schema, source: str, *, json_turns: bool = False) -> None:
    """Raise `CorpusError` naming `source` unless it has a column `id`, and `turns` as a list of structs.

    `json_turns` lets turns be of Arrow's JSON type, too, for a reader that decodes it.
    """
    turns = schema.field("turns").type if "turns" in schema.names else pa.null()
    listed = pa.types.is_list(turns) or pa.types.is_large_list(turns) or pa.types.is_fixed_size_list(turns)
    turn = turns.value_type if listed else pa.null()
    known = pa.types.is_struct(turn) and {"speaker", "text"} <= {field.name for field in turn}
    if "id" not in schema.names or not (known or (json_turns and isinstance(turn, pa.JsonType))):
        columns = ", ".join(f"{name} ({kind})" for name, kind in zip(schema.names, schema.types, strict=True))
        raise CorpusError(
            f"{source}: the columns must be id, turns (a list of structs with speaker and text) and labels, are "
            f"{columns or 'none'}; rename or convert them"
        )


def _rows(file: Path) -> Rows:
    try:
        table = pq.ParquetFile(file).read()  # read_table would make columns of folder names like "split=train"
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{place(file)} must be Parquet, is not ({reason}); write it again") from error
    if rows:
        check_columns(table.schema, place(file))
    for number, row in enumerate(rows, start=1):
        yield f"{place(file)} row {number}", row
