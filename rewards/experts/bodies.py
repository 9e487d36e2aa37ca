"""What requests may say: every field with its type and range; anything else is refused by name."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from rewards.crisis import Tier
from rewards.experts.audit import canonical
from rewards.experts.desk import Submission
from rewards.experts.form import CRITERIA
from rewards.experts.refusal import Refused
from rewards.experts.types import Item
from rewards.flag_rules import Flag
from rollout.types import Speaker, Turn

BodyT = TypeVar("BodyT", bound="Body")
_SHOWN = 60  # characters of a wrong value that the error repeats
_BIGGEST = 2**53  # of whole numbers: what JSON carries everywhere


class Body(BaseModel):
    """Exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _printable(text: str) -> str:
    if any(unicodedata.category(letter) == "Cc" and letter not in "\n\r\t" for letter in text):
        raise ValueError("text must be without control characters")
    return text


def _replaced(text: str) -> str:
    """A policy may write anything: what no page can show becomes U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\r\t" else c for c in text
    )


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """What the chain can hold: its hash is of JSON as everybody reads it."""
    try:
        canonical(told).encode()
    except ValueError:  # NaN, infinities, lone surrogates
        raise ValueError("values must be JSON's own, without NaN, infinities and broken letters") from None
    return told


def _once(flags: list[Flag]) -> list[Flag]:
    if len(set(flags)) != len(flags):
        raise ValueError("flags must be named once each")
    return flags


Share = Annotated[float, Field(ge=0, le=1)]
Handle = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Uuid = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$")]
Name = Annotated[str, Field(pattern=r"^[\p{L}\p{N}_][\p{L}\p{M}\p{N}_ .@-]{0,63}$")]
Reason = Annotated[str, Field(max_length=10_000), AfterValidator(_printable)]
Flags = Annotated[list[Flag], Field(max_length=len(Flag)), AfterValidator(_once)]
Said = Annotated[str, Field(max_length=100_000), AfterValidator(_replaced)]
Label = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, le=_BIGGEST)]
Free = Annotated[dict[str, Any], AfterValidator(_plain)]
Ids = Annotated[list[Handle], Field(max_length=1000)]

_given: dict[str, Any] = {criterion.name: (Share, ...) for criterion in CRITERIA}
_begun: dict[str, Any] = {criterion.name: (Share | None, None) for criterion in CRITERIA}
Scores: Any = create_model("Scores", __base__=Body, **_given)
Draft: Any = create_model("Draft", __base__=Body, **_begun)


class Nothing(Body):
    """{}"""


class DraftBody(Body):
    """A form that is not finished."""

    lease: Handle
    criteria: Draft
    overall: Share | None
    flags: Flags
    reason: Reason

    @property
    def draft(self) -> dict[str, Any]:
        """As the page gets it back."""
        return self.model_dump(mode="json", exclude={"lease"})


class RatingBody(Body):
    """A form that is."""

    lease: Handle
    submission: Uuid
    criteria: Scores
    overall: Share
    flags: Flags
    reason: Reason
    seconds: Annotated[float, Field(ge=0, le=1e6)]

    @property
    def told(self) -> Submission:
        """As the store takes it."""
        flags = sorted(flag.value for flag in self.flags)
        return Submission(
            self.lease, self.submission, self.criteria.model_dump(), self.overall, flags, self.reason, self.seconds
        )


class SkipBody(Body):
    """Why not."""

    lease: Handle
    reason: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]


class SettingsBody(Body):
    """A rater's own choices."""

    crisis: bool


class TurnBody(Body):
    """One utterance."""

    speaker: Speaker
    text: Said


class ItemBody(Body):
    """A reply to be judged."""

    key: Label
    history: Annotated[list[TurnBody], Field(max_length=1000)]
    reply: Said
    tier: Tier = Tier.NONE
    wanted: Annotated[int, Field(ge=1, le=100)] = 1
    priority: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    origin: Free = Field(default_factory=dict)

    @property
    def item(self) -> Item:
        """As the store takes it."""
        turns = tuple(Turn(turn.speaker, turn.text) for turn in self.history)
        return Item(self.key, turns, self.reply, self.tier.value, self.wanted, self.priority, self.origin)


class ItemsBody(Body):
    """Replies to be judged."""

    items: Annotated[list[ItemBody], Field(max_length=1000)]


class RewardsBody(Body):
    """Which rewards a step waits for."""

    run: Label
    step: Count
    ids: Ids
    least: Annotated[int, Field(ge=1, le=100)] = 1
    wait_s: Annotated[float, Field(ge=0, le=30)] = 0.0
    settle_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    all: bool = False
    fix: bool = True


class CloseBody(Body):
    """Which items nobody needs: these, and those of a run from a step on."""

    ids: Ids | None = None
    run: Label | None = None
    from_step: Count | None = None

    def refuse_halves(self) -> None:
        """Raises `Refused` (422) where the body names nothing to close, or a run without a step or a step without a run."""
        if self.ids is None and self.run is None and self.from_step is None:
            raise Refused(422, "ids must be given, or run and from_step, all are missing")
        for field, value, other in (("run", self.run, self.from_step), ("from_step", self.from_step, self.run)):
            if value is None and other is not None:
                raise Refused(422, f"{field} must be given, is missing: run and from_step go together")


class UpdateBody(Body):
    """A step of PPO used these rewards; of the items `guessed` it used a surrogate's score."""

    run: Label
    step: Count
    rewards: list[Handle]
    guessed: list[Handle] = []


class CheckpointBody(Body):
    """The policy after `step` steps was written."""

    run: Label
    step: Count
    manifest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EventBody(Body):
    """Something that belongs into the chain."""

    kind: Literal["update", "checkpoint", "surrogate", "alarm"]
    body: Free


class RaterBody(Body):
    """Whom to invite."""

    name: Name
    crisis: bool = False
    days: Annotated[float, Field(gt=0, le=3650)] | None = None


def parse(kind: type[BodyT], text: bytes) -> BodyT:
    """The body. Raises `Refused`: 400 for what is no JSON object, 422 with field, rule and value for a wrong field."""
    try:
        return kind.model_validate_json(text or b"{}")
    except ValidationError as error:
        raise _refusal(error) from None


def check(kind: type[BodyT], body: Any) -> BodyT:
    """The same for what is parsed already."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error, "body.") from None


def _refusal(error: ValidationError, where: str = "") -> Refused:
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Refused(400, f"the body must be JSON, is not: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = where + ".".join(map(str, first["loc"]))
    if not first["loc"]:
        return Refused(400, f"the body must be a JSON object, got {_cut(first['input'])}")
    if first["type"] == "missing":
        return Refused(422, f"{field} must be given, is missing")
    if first["type"] == "extra_forbidden":
        return Refused(422, f"{_cut(field)} must not be given: there is no field of this name here")
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
    rule = rule if rule.startswith("must") else f"is refused: {rule}"
    return Refused(422, f"{_cut(field, quoted=False)} {rule}, got {_cut(first['input'])}")


def _cut(value: Any, *, quoted: bool = True) -> str:
    text = " ".join((ascii(value) if quoted else ascii(value)[1:-1]).split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
