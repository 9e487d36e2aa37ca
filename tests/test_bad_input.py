"""What people get wrong, through the real command: one line that says what to do, its exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants as hub
from ray.exceptions import OutOfMemoryError, RayTaskError

import rl.ppo  # noqa: F401 (before any test: what it loads is not what the tests time)
from cluster.settings import load
from rewards.mixture import Mixture
from rl.__main__ import Exit, main
from rl.checkpoints import Checkpoints
from rl.config import PpoRecipe
from rl.records import claimed
from tests.fakes import FakeLearner
from tests.tiny import RECIPES, save_tiny

ROOT = Path(__file__).parents[1]
NARROW = ("--prompts.max_context_tokens=96", "--sampling.max_tokens=16", "--rollout.max_model_len=128")
Refuse = Callable[..., str]
Files = dict[str, str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bad_input") / "model")


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address that is taken, and where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


def the_line(said: str) -> str:
    """What the command says on standard error, which must be one line and no traceback."""
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("attune: ")]
    return line.removeprefix("attune: ")


def settled(runs: Path, line: str) -> None:
    """Nothing in `runs` is half-written or begun, and a run directory says what the command said."""
    begun = ("model", "rollouts", "checkpoints", "tensorboard", "metrics.jsonl")
    assert [p for p in runs.rglob("*") if "partial" in p.name or p.name in begun] == []
    for status in runs.glob("*/status.json"):
        assert json.loads(status.read_text()) == {"state": "failed", "step": 0, "message": line}
        assert (status.parent / "report.html").exists()


@pytest.fixture
def refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, closed_port: str
) -> Refuse:
    """Run `attune WORDS` under `runs`, which must be refused as wrong input; the line that it says.

    There is no cluster: what passes every check before Ray is refused all the same, with another line.
    """
    monkeypatch.setenv("RAY_ADDRESS", closed_port)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, model: Path | None = None, runs: str = "runs") -> str:
        capsys.readouterr()
        paths = [f"--runs={runs}"] + ([f"--model.path={model}"] if model else [])
        assert main([*words, *paths] if words[1:] else words) == Exit.WRONG_INPUT
        return the_line(capsys.readouterr().err)

    return run


# -- words and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ppoo"], ["unknown command 'ppoo'", "commands are ppo, sft, sweep"]),
        (["ppo"], ["attune ppo needs a recipe", ".toml", "local"]),
        (["check"], ["attune check needs a recipe"]),
        (["ppo", "--steps=3"], ["attune ppo needs a recipe"]),
        (["ppo", "nowhere.toml"], ["recipe 'nowhere.toml' does not exist", "give the path of a .toml recipe"]),
        (["talk"], ["attune talk needs one checkpoint folder", "0 words"]),
        (["report"], ["attune report needs a run directory", "got nothing", "name one"]),
        (["report", str(Path(__file__).parent)], ["attune report needs a run directory", "settings.json", "tests"]),
        (
            ["ppo", "local", "--rollout.engine=2"],
            ["unknown setting 'rollout.engine'", "did you mean 'rollout.engines'"],
        ),
        (["ppo", "local", "--steps=many"], ["command line: steps must be a whole number, is 'many'"]),
        (["ppo", "local", "--model.tuning=half"], ["model.tuning must be one of full, lora, is 'half'"]),
        (
            ["ppo", "local", "--sampling.top_p=0.9"],
            ["sampling.top_p must be 1", "are 0.9 and 0", "lower sampling.temp"],
        ),
        (
            ["ppo", "local", *NARROW, "--sampling.max_tokens=33"],
            ["= 129 must not exceed", "max_model_len = 128; raise"],
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_words_that_mean_nothing(words: list[str], said: list[str], refuse: Refuse, tmp_path: Path) -> None:
    """An unknown command, a missing recipe or argument and a wrong setting leave nothing on disk."""
    line = refuse(*words)
    assert all(part in line for part in said), line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_recipe_is_named(refuse: Refuse, tmp_path: Path) -> None:
    """A mistake in a recipe file is told with the file."""
    (tmp_path / "mine.toml").write_text("[learner]\nranks = 'two'\n")
    assert refuse("ppo", "mine.toml") == "mine.toml: learner.ranks must be a whole number, is 'two'"
    assert not (tmp_path / "runs").exists()


def test_a_wrong_setting_is_told_at_once() -> None:
    """Whoever mistypes a setting does not wait for torch, Ray and DeepSpeed to load."""
    program = """
import sys
from rl.__main__ import main
code = main(["ppo", "local", "--step=3"])
print(code, *sorted({"torch", "transformers", "ray", "deepspeed"} & sys.modules.keys()))
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert answer.stdout.split() == ["2"], answer.stdout
    assert "unknown setting 'step'; did you mean 'steps'?" in the_line(answer.stderr)


# -- corpora ---------------------------------------------------------------------------------------------------------

TURN = {"speaker": "client", "text": "I cannot sleep."}
JSONL_ROW = json.dumps({"id": "1", "turns": [TURN]})
ESCONV_ROW = {"dialog": [{"speaker": "seeker", "content": "I cannot sleep."}]}
HEADER = "ID,Type,Utterance,Dialog_Act\n"


def esconv(*rows: Any) -> Files:
    return {"ESConv.json": json.dumps(rows)}


@pytest.mark.parametrize(
    ("form", "files", "said"),
    [
        ("esconv", {}, "there is no file corpus; correct it"),
        ("hope", {}, "there is no .csv under corpus; correct it"),
        ("jsonl", {}, "there is no corpus; correct it"),
        ("esconv", {"other.json": "[]"}, "there is no file corpus/ESConv.json; correct it"),
        ("jsonl", {"train.jsonl": JSONL_ROW}, "there is no corpus/valid.jsonl; correct it"),
        ("esconv", esconv(), "corpus/ESConv.json must be a list of dialogues, holds none; fetch"),
        ("hope", {"7.csv": HEADER}, "corpus/7.csv must hold an utterance, holds none; remove"),
        (
            "jsonl",
            dict.fromkeys(("train.jsonl", "valid.jsonl", "test.jsonl"), "\n"),
            "train.jsonl must hold a dialogue",
        ),
        ("esconv", esconv(ESCONV_ROW), "the valid split must hold a dialogue"),
        ("esconv", esconv(ESCONV_ROW, {"dialog": [{"speaker": "seeker"}]}), "dialogue 2, turn 1: 'content' must be"),
        ("esconv", esconv(ESCONV_ROW, "text"), "corpus/ESConv.json dialogue 2: 'dialog' must be a list of turns"),
        ("esconv", {"ESConv.json": "[\n{"}, "corpus/ESConv.json must be JSON, line 2 is not"),
        ("hope", {"7.csv": HEADER + "7_0,T,Hello,gt\n7_1,X,Hm,gc\n"}, "corpus/7.csv line 3: 'Type' must be T or P"),
        ("hope", {"7.csv": "ID,Speaker,Utterance\n"}, "corpus/7.csv line 1: the columns must be"),
        ("hope", {"7.csv": f'{HEADER}7_0,T,"{"so " * 50_000}'}, "corpus/7.csv line 2: must be CSV"),
        (
            "jsonl",
            {"train.jsonl": f"{JSONL_ROW}\n{{", "valid.jsonl": "", "test.jsonl": ""},
            "train.jsonl line 2: must be",
        ),
        (
            "jsonl",
            {"train.jsonl": JSONL_ROW.replace("client", "nurse"), "valid.jsonl": "", "test.jsonl": ""},
            "corpus/train.jsonl line 1, turn 1: 'speaker' must be client or therapist, is 'nurse'; fix the turn",
        ),
    ],
)
def test_corpora_that_cannot_be_read(form: str, files: Files, said: str, refuse: Refuse, tmp_path: Path) -> None:
    """A corpus that is missing, empty or off its schema is named, with file and row, before anything else is tried."""
    for name, text in files.items():
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / name).write_text(text)
    line = refuse("ppo", "local", f"--corpus.format={form}", "--corpus.path=corpus")
    assert said in line
    settled(tmp_path / "runs", line)


# -- models and prompts ----------------------------------------------------------------------------------------------


def garbage(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mixt')


def cut_short(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "holds no config.json; give a folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json; give a folder"),
    "a garbage config": (garbage, "damaged config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights cut short": (cut_short, "damaged model.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
}


@pytest.mark.parametrize("knob", ["model.path", "rewards.encoder.path"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model(damage: str, knob: str, model: Path, refuse: Refuse, tmp_path: Path) -> None:
    """A model folder that is none, or lacks a part, is refused by setting, folder and part, before Ray starts."""
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    break_it, lacking = DAMAGES[damage]
    break_it(folder)
    line = refuse("ppo", "local", "--rewards.similarity.weight=1", f"--{knob}={folder}")
    assert line.startswith(f"{knob} {str(folder)!r} ") and lacking in line and ";" in line
    settled(tmp_path / "runs", line)


def test_a_hub_id_that_cannot_be_had(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no folder and that the hub does not give is refused with both readings of it."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    line = refuse("ppo", "local", "--model.path=nobody/nothing")
    assert line.startswith("model.path 'nobody/nothing' must be a folder that transformers loads or a hub id")
    assert line.endswith("correct it, or download the model first")
    settled(tmp_path / "runs", line)


def test_a_model_that_reads_less_than_the_recipe_asks(model: Path, refuse: Refuse, tmp_path: Path) -> None:
    """The model's own context bounds the engine's."""
    line = refuse("ppo", "local", *NARROW, "--rollout.max_model_len=193", model=model)
    assert line.startswith("rollout.max_model_len = 193 must not exceed the 192 tokens that model.path")
    settled(tmp_path / "runs", line)


@pytest.mark.parametrize("own_model", [True, False])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--prompts.fixed", "so much " * 200],
            ["prompts.fixed: ", "must fit in 96 tokens", "raise the limit (prompts.max_context_tokens)"],
        ),
        (["--prompts.max_context_tokens=8"], ["must fit in 8 tokens", "raise the limit (prompts.max_context_tokens)"]),
        (["--prompts.system", "so much " * 200], ["must fit in 96 tokens", "shorten the system text"]),
        (["--prompts.min_reference_words=9999"], ["corpus has share", "and none; give it prompts"]),
    ],
)
def test_prompts_that_do_not_fit(
    words: list[str], said: list[str], own_model: bool, model: Path, refuse: Refuse, tmp_path: Path
) -> None:
    """Prompts are tried before Ray starts, and before a model is built: nobody waits for a warm-up to be refused."""
    line = refuse("ppo", "local", *NARROW, *words, model=model if own_model else None)
    assert all(part in line for part in said), line
    settled(tmp_path / "runs", line)


def test_a_corpus_that_teaches_nothing(refuse: Refuse, tmp_path: Path) -> None:
    """Where a small model is to be built, a split in which nobody answers a client is refused before it is begun."""
    answered = {"id": "2", "turns": [TURN, {"speaker": "therapist", "text": "What keeps you awake at night?"}]}
    opened = {"id": "3", "turns": [{"speaker": "therapist", "text": "What brings you here?"}, TURN]}
    (tmp_path / "corpus").mkdir()
    for split, row in {"train": answered, "valid": opened, "test": {**answered, "id": "4"}}.items():
        (tmp_path / "corpus" / f"{split}.jsonl").write_text(json.dumps(row).replace("night", split))
    line = refuse("ppo", "local", "--corpus.format=jsonl", "--corpus.path=corpus")
    assert line.startswith("the valid split must hold a therapist's reply") and "give a model.path" in line
    settled(tmp_path / "runs", line)


# -- run directories -------------------------------------------------------------------------------------------------


def recipe(model: Path, *argv: str) -> PpoRecipe:
    return load(PpoRecipe, RECIPES / "local.toml", argv=["--runs=runs", f"--model.path={model}", *argv])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--seed=1", "seed = 0, this command says 1"),
        ("--learner.ranks=1", "learner.ranks = 2, this command says 1"),
        ("--model.path=elsewhere", "model.path = "),
        ("--model.path=", "this command says ''"),
    ],
)
def test_a_run_resumes_as_it_began(argv: str, said: str, model: Path, refuse: Refuse, tmp_path: Path) -> None:
    """Another model, seed or number of ranks is refused by name with both values, and no file of the run changes."""
    mine = recipe(model)
    with claimed(mine) as directory:
        keeper = Checkpoints(directory / "checkpoints", keep=1)
        folder = keeper.save(0, FakeLearner([]), prompts=Mixture(mine.rewards), reward=Mixture(mine.rewards))
    assert folder.name == "step-000001"

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}

    before = files()
    line = refuse("ppo", "local", f"--model.path={model}", argv)
    assert line.startswith(f"run {directory} was made with ") and said in line
    assert line.endswith("give the old value, or choose another --name")
    assert files() == before


def test_a_run_directory_in_use(model: Path, refuse: Refuse, tmp_path: Path) -> None:
    """The second command names the process that works there, and changes nothing."""
    program = """
import sys
from tests.test_records import PpoRecipe, claimed, load
with claimed(load(PpoRecipe, sys.argv[1], argv=sys.argv[2:])):
    print("claimed", flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", program, str(RECIPES / "local.toml"), f"--runs={tmp_path / 'runs'}"]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "claimed\n"
        line = refuse("ppo", "local", "--seed=9")
        assert f"run directory runs/local is in use by process {other.pid} on " in line
        assert line.endswith("wait for it, or choose another --name")
    assert json.loads((tmp_path / "runs/local/settings.json").read_text())["seed"] == 0
    assert {path.name for path in (tmp_path / "runs/local").iterdir()} == {".lock", "settings.json"}


@pytest.mark.parametrize("runs", ["runs", "runs/deep", "/sys/attune"])
def test_a_runs_folder_that_is_none(runs: str, refuse: Refuse, tmp_path: Path) -> None:
    """A file in place of the runs folder or above it, and a disk that cannot be written, are named."""
    (tmp_path / "runs").write_text("mine")
    line = refuse("ppo", "local", runs=runs)
    assert line.startswith(f"run directory {runs}/local must be a folder to write in, is none (")
    assert line.endswith("; choose another --runs")
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_file_in_place_of_the_run_directory(refuse: Refuse, tmp_path: Path) -> None:
    """A run does not overwrite what has its name."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/local").write_text("mine")
    assert "run directory runs/local must be a folder to write in" in refuse("ppo", "local")
    assert (tmp_path / "runs/local").read_text() == "mine"


# -- the cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "ray://{}", "http://{}"])
def test_a_cluster_that_does_not_answer(
    form: str, closed_port: str, model: Path, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed port is told within seconds, where Ray itself would try for minutes; a dashboard's address at once."""
    monkeypatch.setenv("RAY_ADDRESS", form.format(closed_port))
    started = time.monotonic()
    line = refuse("ppo", "local", *NARROW, model=model)
    assert time.monotonic() - started < 30
    assert "RAY_ADDRESS" in line and closed_port in line and ("unset it" in line or "Unset RAY_ADDRESS" in line)
    settled(tmp_path / "runs", line)


def without_ray_address() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.mark.slow
def test_a_cluster_too_small(tmp_path: Path) -> None:
    """What is asked and what is there, before a model is built and without a wait for room that cannot come."""
    words = ["ppo", "local", f"--runs={tmp_path}", "--rollout.engines=64", "--rollout.cpus=100"]
    answer = subprocess.run(
        [sys.executable, "-m", "rl", *words],
        cwd=ROOT, env=without_ray_address(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == Exit.WRONG_INPUT, answer.stderr
    line = the_line(answer.stderr)
    assert line.startswith("the cluster has too little CPU: the recipe asks rollout engine: 64 x (100 CPU, 0 GPU); ")
    assert f"; it has {os.cpu_count()} CPU, " in line and line.endswith("or lower rollout.engines, rewards.actors, "
                                                                        "learner.ranks or their cpus")  # fmt: skip
    assert "warm-up" not in answer.stdout and "starting engines" not in answer.stdout
    settled(tmp_path, line)


# -- rewards that break ----------------------------------------------------------------------------------------------

BREAKING = """
import sys
import ray
import rl.ppo
from cluster.placement import Placement
from rewards.fleet import FLEET, RewardFleet
from rl.__main__ import main
from rl.layout import claims
from rl.records import claimed
from tests.reward_replies import GOOD, reply

def break_terms():
    from rewards import panel
    from rewards.types import Score

    class Broken:
        def __init__(self, answer):
            self.score = answer

        def applies(self, rollout):
            return True

    def fail(rollouts):
        raise KeyError("lexicon")

    panel.TERMS = {
        "inquiry": lambda bench: Broken(lambda rollouts: [Score(float("nan")) for _ in rollouts]),
        "length": lambda bench: Broken(lambda rollouts: [Score(0.5) for _ in rollouts[1:]]),
        "repetition": lambda bench: Broken(fail),
    }

def score(recipe):
    with claimed(recipe) as directory, rl.endings.reported(directory):
        placement = Placement([claim for claim in claims(recipe, on_gpu=False) if claim.fleet == FLEET])
        try:
            RewardFleet(recipe.rewards, placement, environment={}).score([reply(GOOD, sample=k) for k in range(2)])
        finally:
            placement.release()
    return directory

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         runtime_env={"worker_process_setup_hook": break_terms})
rl.ppo.run = score
for term in ("inquiry", "length", "repetition"):
    knobs = {**dict.fromkeys(("similarity", "emotion", "inquiry", "length", "repetition"), 0), term: 1}
    words = [f"--rewards.{name}.weight={weight}" for name, weight in knobs.items()]
    words += ["--rewards.crisis.cap=False", "--rewards.crisis.classifier=False"]
    print("exit code", main(["ppo", "local", f"--runs={sys.argv[1]}", f"--name={term}", *words]))
"""


@pytest.mark.slow
def test_a_reward_that_breaks(tmp_path: Path) -> None:
    """A term that answers NaN, answers too little or raises inside its actor ends the run as a failure on the way, and
    the line names the term, the reply and what happened.

    The command, its settings, the run directory, the actors and the way out are real; engines and learner are left out.
    """
    answer = subprocess.run(
        [sys.executable, "-c", BREAKING, str(tmp_path)],
        env={**without_ray_address(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-3:] == [f"exit code {Exit.FAILED}"] * 3
    assert "Traceback" not in answer.stderr
    lines = [line.removeprefix("attune: ") for line in answer.stderr.splitlines() if line.startswith("attune: ")]
    assert lines == [
        "inquiry must give a value in [0, 1], got nan for fixed/hopeless/0",
        "length must give one score per reply, got 1 scores for 2 replies from fixed/hopeless/0 on",
        "repetition failed on 2 replies from fixed/hopeless/0 on: KeyError: 'lexicon'",
    ]
    for term, line in zip(("inquiry", "length", "repetition"), lines, strict=True):
        assert json.loads((tmp_path / term / "status.json").read_text())["message"] == line
    assert not list(tmp_path.rglob("*partial*"))


def test_what_ray_says_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that Ray ended for want of memory, told by whoever waited for it: exit code 1 and no traceback. A fault of our own
    code in an actor stays one."""
    errors: list[Exception] = [
        OutOfMemoryError("ended\nfor want of memory"),
        RayTaskError("call", "trace", KeyError("ours")),
    ]

    def ppo(words: Sequence[str]) -> int:
        raise errors.pop(0)

    monkeypatch.setattr("rl.__main__.ppo", ppo)
    assert main(["ppo"]) == 1
    assert capsys.readouterr().err == "attune: ended for want of memory\n"
    with pytest.raises(RayTaskError):
        main(["ppo"])
