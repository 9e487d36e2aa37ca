"""What `attune check` says of a run: its directory, trackers and corpus, and the cluster that it would use."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from cluster.check import NodeReport, cluster_memory, disk, existing, joined, nodes, room, shared_memory
from cluster.findings import Finding, Verdict, missing, ok, size, warn
from cluster.packages import vllm_build
from cluster.placement import has_gpus
from rl.check_model import Model, encoder, policy, prompts
from rl.config import PpoRecipe, TrackingConfig
from rl.heldout import finding
from rl.intake import check_publish
from rl.layout import claims, described
from rl.memory_model import Counts, cpu_bytes, disk_bytes, engine_bytes, policy_bytes, rank_bytes
from rl.records import check_resume
from rl.sft import claims as sft_claims
from rl.sft_config import SftRecipe
from rollout.config import CorpusConfig
from rollout.corpora import Corpus, known_acts, load
from rollout.fields import check_fields
from rollout.weight_stream import CHUNK_BYTES


def look(recipe: PpoRecipe | SftRecipe, names: Sequence[str]) -> Iterator[Finding]:
    """Every finding that needs the packages; `names` are those whose versions must be the same on every node."""
    yield from trackers(recipe.tracking)
    writable = yield from run_directory(recipe)
    if isinstance(recipe, PpoRecipe):
        yield from encoder(recipe.rewards)
    corpus = yield from dialogues(recipe.corpus)
    model = None if corpus is None else (yield from policy(recipe, corpus))
    if corpus is not None and model is not None:
        yield prompts(recipe, corpus, model.tokenizer) if isinstance(recipe, PpoRecipe) else labels(recipe, corpus)
        if isinstance(recipe, PpoRecipe):
            yield finding(recipe, corpus, model.tokenizer)
        yield disk(recipe.directory, disk_bytes(recipe, model.counts))
    else:
        what = "model, prompts, disk, memory" if corpus is None else "prompts, disk, memory"
        yield warn(what, "not looked at", "check again once what is missing above is there")
    yield from the_cluster(recipe, names, model, writable=writable)


def labels(recipe: SftRecipe, corpus: Corpus) -> Finding:
    """Whether the corpus has the labels that the input fields need."""
    try:
        check_fields(recipe.fields, {"train": corpus.train, "valid": corpus.valid}, known_acts(recipe.corpus))
    except ValueError as error:
        return missing("fields", str(error))
    return ok("fields", f"pairs {recipe.data.pairs}; " + ", ".join(f"{k} {v}" for k, v in vars(recipe.fields).items()))


def trackers(config: TrackingConfig) -> Iterator[Finding]:
    """The vendors' packages that the recipe asks for."""
    asked = {
        "tensorboard": config.tensorboard,
        "wandb": bool(config.wandb_project),
        "mlflow": bool(config.mlflow_experiment),
    }
    for name in (name for name, is_asked in asked.items() if is_asked and importlib.util.find_spec(name) is None):
        yield missing("tracking", f"{name} not installed", f"pip install {name}, or leave it out of [tracking]")


def run_directory(recipe: PpoRecipe | SftRecipe) -> Generator[Finding, None, bool]:
    """Whether the run directory can be written, is nobody's now, and holds no run that the recipe cannot continue."""
    directory = recipe.directory
    lock = directory / ".lock"
    changes = io.StringIO()
    try:
        with tempfile.TemporaryFile(dir=existing(directory)):
            pass
        if lock.exists():
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with contextlib.redirect_stdout(changes):
            check_resume(directory, recipe)
    except BlockingIOError:
        owner = lock.read_text().strip() or "another process"
        yield missing("run directory", f"{directory} is in use by {owner}", "wait for it, or choose another --name")
        return True
    except OSError as error:
        yield missing("run directory", f"{directory} cannot be written ({error})", "choose another --runs")
        return False
    except ValueError as error:
        yield missing("run directory", str(error))
        return True
    if changes.getvalue():
        yield warn("run directory", f"{directory}: {changes.getvalue()}", "resuming takes the new values")
    resumes = any((directory / "checkpoints").glob("step-*"))
    yield ok("run directory", f"{directory} can be written; the run {'resumes' if resumes else 'begins'}")
    return True


def dialogues(config: CorpusConfig) -> Generator[Finding, None, Corpus | None]:
    """The corpus, read as a run reads it."""
    try:
        corpus = load(config)
    except (ValueError, OSError) as error:
        yield missing("corpus", str(error))
        return None
    counts = ", ".join(f"{split} {len(members)}" for split, members in corpus.splits.items())
    files = corpus.provenance["files"]
    assert not isinstance(files, str)
    hashes = ", ".join(f"{name} {str(digest)[:12]}" for name, digest in list(files.items())[:2])
    more = f" and {len(files) - 2} more" if len(files) > 2 else ""
    yield ok("corpus", f"{config.format}: dialogues {counts}; sha256 {hashes}{more}")
    return corpus


def the_cluster(
    recipe: PpoRecipe | SftRecipe, names: Sequence[str], model: Model | None, *, writable: bool
) -> Iterator[Finding]:
    """The cluster that the run would use: its room, its nodes, their memory, and the vLLM for its kind of device."""
    with joined() as connection:
        yield connection
        if connection.verdict is Verdict.MISSING:
            return
        on_gpu = has_gpus()
        if not on_gpu and recipe.model.dtype == "bfloat16":
            yield warn(
                "devices", "this cluster has no GPU (or vLLM's CPU build): all would compute on CPUs", "join GPU nodes"
            )
        yield from the_room(recipe, on_gpu=on_gpu)
        if isinstance(recipe, PpoRecipe):
            yield vllm_build(on_gpu=on_gpu)
            if model is not None:
                yield published(recipe, on_gpu=on_gpu)
        with _marker(recipe, writable) as paths:
            if model is not None and model.folder is not None and Path(recipe.model.path).is_dir():
                paths[f"the model {model.folder}"] = str(model.folder)
            reports = yield from nodes(names, paths, on_gpu=on_gpu)
        if model is not None:
            yield memory(recipe, model.counts, reports, on_gpu=on_gpu)
        if not isinstance(recipe, PpoRecipe):
            return
        if on_gpu:
            yield warn("collectives", "not tried", "the run's first publish tries NCCL between learner and engines")
    transfer = recipe.rollout.weight_transfer
    if model is not None and (transfer == "shared_memory" or (transfer == "auto" and not on_gpu)):
        yield from shared_memory(min(policy_bytes(recipe, model.counts), CHUNK_BYTES))


def published(recipe: PpoRecipe, *, on_gpu: bool) -> Finding:
    """What a publish sends, and whether the engines can take it."""
    try:
        check_publish(recipe, on_gpu=on_gpu)
    except ValueError as error:
        return missing("publish", str(error))
    return ok("publish", f"{recipe.publish.part(recipe.model.tuning)}, within {recipe.publish.timeout_s:g} s")


def the_room(recipe: PpoRecipe | SftRecipe, *, on_gpu: bool) -> Iterator[Finding]:
    """The layout, and whether the joined cluster has room for it."""
    if not isinstance(recipe, PpoRecipe):
        yield room(sft_claims(recipe))
        return
    try:
        asked = claims(recipe, on_gpu=on_gpu)
    except ValueError as error:
        yield missing("layout", str(error))
        return
    yield ok("layout", described(recipe, on_gpu=on_gpu))
    yield room(asked)


@contextlib.contextmanager
def _marker(recipe: PpoRecipe | SftRecipe, writable: bool) -> Iterator[dict[str, str]]:
    if not writable:
        yield {}
        return
    with tempfile.NamedTemporaryFile(dir=existing(recipe.directory), prefix=".attune-check-") as file:
        yield {f"the run directory's disk ({recipe.runs})": file.name}


def memory(recipe: PpoRecipe | SftRecipe, counts: Counts, reports: Sequence[NodeReport], *, on_gpu: bool) -> Finding:
    """Whether the estimate of what the run holds in memory fits; an estimate can only warn."""
    remedy = "raise learner.zero_stage or learner.ranks (rollout.tensor_parallel for engines), use LoRA, or take a smaller model"
    if not on_gpu:
        needed, there = cpu_bytes(recipe, counts), cluster_memory()
        text = f"a run takes about {size(needed)}, Ray found {size(there)}"
        return ok("memory", text) if needed <= there else warn("memory", text, remedy)
    rank = rank_bytes(recipe, counts)
    smallest = min((count for report in reports for count in report.gpu_bytes), default=0)
    text, fits = f"a learner rank takes {size(rank)}, a GPU has {size(smallest)}", rank <= smallest
    if isinstance(recipe, PpoRecipe):
        engine = engine_bytes(recipe, counts)
        text += f", an engine takes {size(engine)} and its cache"
        if near := recipe.near_engines:
            share = int(smallest * recipe.placement.memory_utilization)
            text += f", {size(share)} in all beside a rank"
            fits = engine <= share and rank + share <= smallest
        if near < recipe.rollout.engines:
            fits = fits and engine <= smallest * recipe.rollout.memory_utilization
    return ok("memory", text) if fits else warn("memory", text, remedy)
