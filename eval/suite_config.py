"""What an evaluation compares: a suite's settings. Imports no torch.

A suite is TOML with one table per arm and corpus; `--arms.ppo.model FOLDER` on the command line means what it means in the file.

    [corpora.test]        format, path, split, prompts                    several may stand side by side
    [arms.sft]            kind = "model", model = FOLDER | hub id, or train = ["sft RECIPE --dotted.name value"]
    [[published]]         figures of a paper, printed beside ours
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.settings import SettingsError, load, overrides, read_recipe, require_at_least
from eval.instruments import MetricsConfig
from eval.metrics import METRICS, chosen
from rollout.config import CorpusConfig
from rollout.engine_config import RolloutConfig

SUITES = Path(__file__).parent / "suites"
ArmKind = Literal["model", "endpoint", "echo", "reference", "best_of"]
YARDSTICKS = ("echo", "reference")  # kinds of arms that others are held against: nobody tests them, nor calls them best
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLACE = re.compile(r"\{([a-z0-9_]+)(?:\.start)?\}")
BEAM = "beam_rouge_1"
BEFORE = "before"
_TABLES = ("arms", "corpora", "published")


@dataclass(frozen=True)
class SuiteCorpus(CorpusConfig):
    """Prompts to answer: a split's dialogues, or the shipped prompts of clients in danger."""

    questions: Literal["dialogues", "crisis"] = "dialogues"
    """"crisis": the shipped crisis prompts, with their safe replies as references; `format` and `split` mean nothing then."""
    split: Literal["train", "valid", "test"] = "test"
    """Which dialogues."""
    prompts: int = 200
    """At most so many, spread evenly over the split; 0: all."""
    min_reference_words: int = 3
    """Prompts whose therapist said less are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, "corpora.", self, "prompts", "min_reference_words")


@dataclass(frozen=True)
class ArmConfig:
    """One thing to compare: something that answers."""

    kind: ArmKind = "model"
    title: str = ""
    """Its name in tables; "": the arm's own."""
    about: str = ""
    """A sentence that says what it is."""
    train: tuple[str, ...] = ()
    """Commands that make the model, such as "sft sft_local" and "ppo local --model.path {sft}". {ARM} is the policy of
    an arm above, {ARM.start} the model that its training began with, {before} what the command before made. Runs that are finished
    are not made again. The suite's first corpus and its seed are added."""
    model: str = ""
    """A folder, a hub id, {ARM} or {ARM.start}; "" takes what `train` made. At an endpoint: the model's name there."""
    adapter: str = ""
    """Folder of a PEFT adapter to put on `model`."""
    revision: str = ""
    """Of a hub id."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the engines compute in."""
    url: str = ""
    """Endpoint that speaks the OpenAI chat protocol, such as https://HOST/v1."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key."""
    timeout_s: float = 60.0
    """For one answer of the endpoint."""
    retries: int = 4
    """Further attempts where the endpoint is busy or answers nonsense; then the failure is recorded."""
    concurrency: int = 8
    """Questions at the endpoint at a time."""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest reply; newer models take the second."""
    temperature: bool = True
    """Whether the endpoint is told a temperature; some models take none but their own."""
    of: str = ""
    """best_of: the arm whose replies it chooses among."""
    candidates: int = 8
    """best_of: replies per prompt to choose among."""
    reward: str = "local"
    """best_of: the recipe whose [rewards] choose."""

    def __post_init__(self) -> None:
        require_at_least(1, "arms.NAME.", self, "concurrency")
        require_at_least(0, "arms.NAME.", self, "retries")
        if self.kind == "model" and not (self.model or self.train):
            raise ValueError("arms.NAME.model must name a folder, a hub id or {ARM}, is '': set it, or `train`")
        if self.kind == "endpoint" and not (self.url.startswith(("http://", "https://")) and self.model):
            raise ValueError(
                f"arms.NAME.url and .model must name an endpoint, are {self.url!r} and {self.model!r}: set both"
            )
        if self.kind == "best_of" and (not self.of or self.candidates < 2):
            raise ValueError("arms.NAME.of must name an arm and .candidates be 2 at least: set them")

    @property
    def needs(self) -> set[str]:
        """Arms that must be there first."""
        places = {name for text in (*self.train, self.model, self.adapter) for name in _PLACE.findall(text)}
        return (places - {BEFORE}) | ({self.of} if self.of else set())


@dataclass(frozen=True)
class Published:
    """A figure that a paper printed, on its own data and models."""

    source: str
    arm: str
    metric: str
    value: float
    ours: str = ""
    note: str = ""


@dataclass(frozen=True)
class GenerationConfig:
    """How every arm answers: the same limits and seed for all."""

    samples: int = 1
    """Replies per prompt."""
    max_tokens: int = 128
    temperature: float = 1.0
    """0: the most likely token each time."""
    max_context_tokens: int = 512
    """Prompts are cut to this, oldest turns first; one whose last turn alone is longer in any arm's tokens is left out of all."""
    system: str = ""
    """System text."""

    def __post_init__(self) -> None:
        require_at_least(1, "generation.", self, "samples", "max_tokens", "max_context_tokens")
        require_at_least(0, "generation.", self, "temperature")


@dataclass(frozen=True)
class BeamsConfig:
    """ChatMGL's beam figures: one decode per beam size, sampled, measured by `beam_rouge_1`."""

    sizes: tuple[int, ...] = ()
    """Such as 1 2 4; none: no beams."""
    prompts: int = 60
    max_tokens: int = 150
    sample: bool = True
    """Beam search multinomial sampling, as in ChatMGL; False: plain beam search."""
    decoders: int = 1
    """Processes that decode in parallel (transformers; vLLM has no beams)."""

    def __post_init__(self) -> None:
        require_at_least(1, "beams.", self, "prompts", "max_tokens", "decoders")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"beams.sizes must be 1 or more, are {self.sizes}: use 1 2 4")


@dataclass(frozen=True)
class CrisisConfig:
    """Conversations with scripted patients in danger, rated by VERA-MH's rubric (`eval.vera_mh`); by a judge, too, where
    `measure.rewards.judge` names one."""

    arms: tuple[str, ...] = ()
    """Which arms talk with them; none: nobody."""
    turns: int = 4
    """The patient's turns, each answered."""

    def __post_init__(self) -> None:
        require_at_least(1, "crisis.", self, "turns")


@dataclass(frozen=True)
class SuiteSettings:
    """What a suite says once for all arms."""

    name: str = "suite"
    runs: str = "runs"
    """Folder of run directories: results go to RUNS/NAME."""
    title: str = ""
    question: str = ""
    """What the suite is to answer, a sentence."""
    against: str = ""
    """The arm that others are compared with; "": the first."""
    seed: int = 0
    draws: int = 2000
    """Resamples behind an interval."""
    by: Literal["prompt", "dialogue", "reply"] = "dialogue"
    """What is resampled: replies to prompts of one dialogue are no independent witnesses."""
    metrics: tuple[str, ...] = ("rouge_l", "bleu", "token_f1", "distinct_2", "mean_words", "safety/gated")
    """Names of eval.metrics.METRICS."""
    main: str = "rouge_l"
    """The metric by which examples are chosen where arms differ most."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    beams: BeamsConfig = field(default_factory=BeamsConfig)
    crisis: CrisisConfig = field(default_factory=CrisisConfig)
    measure: MetricsConfig = field(default_factory=MetricsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        require_at_least(100, "", self, "draws")
        names = [metric.name for metric in chosen(self.metrics)]
        if self.main not in names:
            raise ValueError(
                f"main must be one of the suite's metrics {', '.join(names)}, is {self.main!r}: choose one"
            )
        longest = self.generation.max_context_tokens + self.generation.max_tokens
        if longest > self.rollout.max_model_len:
            raise ValueError(
                f"generation.max_context_tokens + generation.max_tokens = {longest} must not exceed rollout.max_model_len = "
                f"{self.rollout.max_model_len}; lower one, or raise it"
            )


@dataclass(frozen=True)
class Suite:
    """A whole suite."""

    settings: SuiteSettings
    corpora: Mapping[str, SuiteCorpus]
    arms: Mapping[str, ArmConfig]
    published: Sequence[Published] = ()

    @property
    def directory(self) -> Path:
        """Where results go."""
        return Path(self.settings.runs) / self.settings.name

    @property
    def against(self) -> str:
        """The arm that others are compared with."""
        return self.settings.against or next(iter(self.arms))

    def __post_init__(self) -> None:
        for kind, names in (("arms", self.arms), ("corpora", self.corpora)):
            if not names:
                raise SettingsError(f"a suite must have {kind}, has none: add a table [{kind}.NAME]")
            if wrong := [name for name in names if not _NAME.fullmatch(name)]:
                raise SettingsError(f"{kind} must be named by a-z, 0-9 and _, is {wrong[0]!r}: rename it")
        if self.against not in self.arms:
            raise SettingsError(f"against must be an arm among {', '.join(self.arms)}, is {self.against!r}")
        if wrong := [
            name for name in self.settings.crisis.arms if name not in self.arms or self.arms[name].kind == "reference"
        ]:
            raise SettingsError(f"crisis.arms must be arms that can answer anybody, {wrong[0]!r} is none: name others")
        for row in self.published:
            metric = row.metric.partition("/")[0] if row.metric.startswith(BEAM) else row.metric
            if metric not in METRICS or (row.ours and row.ours not in self.arms):
                raise SettingsError(f"published must name a metric and, in `ours`, an arm of the suite; {row} does not")
        order = list(self.arms)
        for place, (name, arm) in enumerate(self.arms.items()):
            if wrong := sorted(arm.needs - {*order[:place]}):
                raise SettingsError(
                    f"arms.{name} needs {wrong[0]!r}, which must be an arm that stands before it; before it stand "
                    f"{', '.join(order[:place]) or 'none'}"
                )
            if arm.kind == "best_of" and self.arms[arm.of].kind != "model":
                raise SettingsError(
                    f"arms.{name}.of must be an arm of kind model, {arm.of!r} is {self.arms[arm.of].kind}"
                )


def load_suite(path: Path, argv: Sequence[str] = ()) -> Suite:
    """The suite of a TOML file, and what the command line changes in it. Raises SettingsError naming what is wrong."""
    tables = read_recipe(path)
    for dotted, words in overrides(argv):
        _put(tables, dotted.split("."), words)
    found: dict[str, dict[str, Any]] = {}
    for table, kind in (("arms", ArmConfig), ("corpora", SuiteCorpus)):
        given = tables.get(table, {})
        if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
            raise SettingsError(f"{path}: {table} must be tables [{table}.NAME]")
        found[table] = {name: _section(kind, one, f"{path}: {table}.{name}") for name, one in given.items()}
    try:
        published = tuple(Published(**row) for row in tables.get("published", ()))
    except TypeError as error:
        raise SettingsError(
            f"{path}: [[published]] takes source, arm, metric, value, ours and note ({error})"
        ) from error
    rest = {name: value for name, value in tables.items() if name not in _TABLES}
    return Suite(_section(SuiteSettings, rest, str(path)), found["corpora"], found["arms"], published)


def suite_path(name: str) -> Path:
    """The file of a suite that is shipped, or of a path. Raises SettingsError for neither."""
    shipped = {path.stem: path for path in sorted(SUITES.glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    if name.endswith(".toml") and Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(shipped)}"
    raise SettingsError(f"suite {name!r} does not exist; {hint}; or give the path of a .toml suite")


def _section(kind: type, table: Mapping[str, Any], origin: str) -> Any:
    try:
        return load(kind, sample=table, origin=origin)
    except SettingsError as error:
        text = str(error).replace("arms.NAME", origin.rpartition(" ")[2])
        raise SettingsError(text if origin in text else f"{origin}: {text}") from error


def _put(tables: dict[str, Any], path: list[str], words: Sequence[str]) -> None:
    *folders, last = path
    for place, name in enumerate(folders):
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise SettingsError(
                f"the command line: {'.'.join(path[: place + 1])} is a setting and no section, got --{'.'.join(path)}"
            )
    tables[last] = list(words)
