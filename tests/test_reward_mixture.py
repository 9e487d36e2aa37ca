from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rewards.config import (
    CrisisConfig,
    EmotionConfig,
    ExpertsConfig,
    GateConfig,
    InquiryConfig,
    LengthConfig,
    RepetitionConfig,
    RewardsConfig,
    SimilarityConfig,
)
from rewards.mixture import LocalReward, Mixture, describe
from rewards.panel import TERMS, Measurement, Panel, ask
from rewards.types import RewardError, Score
from rewards.workbench import Workbench
from rollout.types import Rollout
from tests.reward_replies import ELSEWHERE, GOOD, HOPELESS, REFERENCE, prompt, reply

WITH_REFERENCE = prompt(name="esconv/train/0412#7", reference=REFERENCE, emotion="depression")
FIXED = prompt()
TEXT_ONLY = RewardsConfig(similarity=SimilarityConfig(weight=0))


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel(RewardsConfig())


class Answers:
    """A term that gives the values it was made with, or raises, whatever it is asked."""

    def __init__(self, *values: float, error: Exception | None = None, flags: tuple[str, ...] = ()) -> None:
        self._scores = [Score(value, flags=flags) for value in values]
        self._error = error

    def applies(self, rollout: Rollout) -> bool:
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        if self._error is not None:
            raise self._error
        return self._scores


@pytest.mark.parametrize(
    ("term", "rule"),
    [
        (Answers(0.5, math.nan), r"broken must give a value in \[0, 1\], got nan for fixed/hopeless/1"),
        (Answers(math.inf, 0.5), r"broken must give a value in \[0, 1\], got inf for fixed/hopeless/0"),
        (Answers(0.5, 1.5), r"broken must give a value in \[0, 1\], got 1\.5 for fixed/hopeless/1"),
        (Answers(-0.1, 1.0), r"broken must give a value in \[0, 1\], got -0\.1 for fixed/hopeless/0"),
        (Answers(0.5), r"broken must give one score per reply, got 1 scores for 2 replies from fixed/hopeless/0"),
        (Answers(error=OSError("no disk")), r"broken failed on 2 replies from fixed/hopeless/0 on: OSError: no disk"),
    ],
)
def test_a_term_that_breaks_its_contract_is_named_with_the_reply_and_the_value(term: Answers, rule: str) -> None:
    """NaN, infinity, a value outside [0, 1], a wrong count and an exception raise a RewardError that says all of it."""
    with pytest.raises(RewardError, match=rule):
        ask("broken", term, [reply(GOOD, sample=0), reply(GOOD, sample=1)])


def test_the_cause_of_a_failed_term_is_chained() -> None:
    """The exception raised inside a term is the cause of the RewardError."""
    cause = KeyError("weights")
    with pytest.raises(RewardError) as failure:
        ask("broken", Answers(error=cause), [reply(GOOD)])
    assert failure.value.__cause__ is cause


def test_a_term_is_in_the_parts_exactly_where_it_applies(panel: Panel) -> None:
    """Without a reference the similarity abstains, without a known emotion the acknowledgement does; others stay."""
    unknown = prompt("I lost my keys.", name="fixed/keys")
    measured = panel.measure([reply(GOOD, WITH_REFERENCE), reply(GOOD, FIXED), reply(GOOD, unknown)])
    always = {"inquiry", "length", "repetition"}
    assert [set(m.parts) for m in measured] == [{*always, "similarity", "emotion"}, {*always, "emotion"}, always]


@pytest.mark.parametrize("name", sorted(TERMS.keys() - ELSEWHERE))
@pytest.mark.parametrize("to", [WITH_REFERENCE, FIXED, prompt("I lost my keys.")])
def test_no_reply_can_choose_its_judges(name: str, to: object) -> None:
    """Whether a term applies depends on the prompt alone: it is the same for every reply to it."""
    assert isinstance(to, type(FIXED))
    term = TERMS[name](Workbench(RewardsConfig()))
    assert len({term.applies(reply(text, to)) for text in ("", GOOD, HOPELESS, "You feel sad.", REFERENCE)}) == 1


def test_the_total_is_the_weighted_mean_of_the_parts_that_apply() -> None:
    """sum w p / sum w over the parts present: an abstaining term takes its weight with it; parts are reported raw."""
    config = RewardsConfig(
        similarity=SimilarityConfig(weight=3), emotion=EmotionConfig(weight=2), inquiry=InquiryConfig(weight=1)
    )
    parts = [{"similarity": 0.5, "emotion": 1.0, "inquiry": 0.2}, {"emotion": 1.0, "inquiry": 0.4}]
    scores = Mixture(config).combine([Measurement(part) for part in parts])
    assert [s.value for s in scores] == pytest.approx([(1.5 + 2.0 + 0.2) / 6, (2.0 + 0.4) / 3])
    assert [s.parts for s in scores] == parts


def test_a_reply_that_no_term_can_judge_is_an_error_not_a_zero() -> None:
    """With similarity alone, a prompt without a reference raises and names the reply; so does a bare measurement."""
    alone = RewardsConfig(
        emotion=EmotionConfig(weight=0),
        inquiry=InquiryConfig(weight=0),
        length=LengthConfig(weight=0),
        repetition=RepetitionConfig(weight=0),
    )
    with pytest.raises(RewardError, match="fixed/hopeless/0"):
        Panel(alone).measure([reply(GOOD, FIXED)])
    with pytest.raises(RewardError, match="measurement 1 must have parts"):
        Mixture(alone).combine([Measurement({"similarity": 0.5}), Measurement({})])


@pytest.mark.parametrize("parts", [{"charm": 0.5}, {"emotion": math.nan}])
def test_a_measurement_that_cannot_be_weighed_leaves_the_statistics_alone(parts: dict[str, float]) -> None:
    """An unknown or non-finite part raises, and the running statistics stay as they were before the call."""
    mix = Mixture(RewardsConfig(normalise=True))
    mix.combine([Measurement({"emotion": 0.2}), Measurement({"emotion": 0.4})])
    before = mix.state_dict()
    with pytest.raises(RewardError, match="measurement 1"):
        mix.combine([Measurement({"emotion": 0.9}), Measurement(parts)])
    assert mix.state_dict() == before


@pytest.mark.parametrize("normalise", [False, True])
def test_a_red_flag_floors_the_reward_whatever_the_parts(normalise: bool) -> None:
    """A flagged reply earns the floor, however good its parts, and never more than any reply without a flag."""
    draw = random.Random(5)
    mix = Mixture(RewardsConfig(floor=-0.5, normalise=normalise))
    for _ in range(20):
        fine = [Measurement({"emotion": draw.random(), "length": draw.random()}) for _ in range(4)]
        harmful = [Measurement({"emotion": 1.0, "length": draw.random()}, ("dosage",)) for _ in range(4)]
        scores = mix.combine([*fine, *harmful])
        assert max(s.value for s in scores[4:]) <= min(s.value for s in scores[:4])
        if not normalise:
            assert [s.value for s in scores[4:]] == [-0.5] * 4


def test_without_the_gate_flags_are_reported_and_cost_nothing() -> None:
    """`gate.enabled = false` leaves the total as it is and the flags in the score."""
    mix = Mixture(RewardsConfig(gate=GateConfig(enabled=False)))
    assert mix.combine([Measurement({"emotion": 0.7}, ("dosage",))]) == [Score(0.7, {"emotion": 0.7}, ("dosage",))]


def test_normalisation_is_that_of_all_ungated_totals_so_far() -> None:
    """After each call, values are (total - mean) / std of the concatenated ungated stream, as numpy computes them."""
    draw = random.Random(1)
    mix, stream = Mixture(RewardsConfig(normalise=True)), list[float]()
    for count in (3, 1, 8, 64):
        totals = [draw.random() for _ in range(count)]
        scores = mix.combine([*(Measurement({"emotion": t}) for t in totals), Measurement({"emotion": 1.0}, ("x",))])
        stream += totals
        expected = (np.array([*totals, 0.0]) - np.mean(stream)) / np.std(stream)
        np.testing.assert_allclose([s.value for s in scores], expected, atol=1e-9)
        assert [s.parts["emotion"] for s in scores[:-1]] == totals


def test_a_stream_of_equal_rewards_normalises_to_zero() -> None:
    """When no reward differs from another there is nothing to learn: every value is 0, and finite."""
    mix = Mixture(RewardsConfig(normalise=True))
    values = [s.value for _ in range(3) for s in mix.combine([Measurement({"emotion": 0.1})] * 7)]
    assert values == pytest.approx([0.0] * 21, abs=1e-6)


def test_a_restored_mixture_goes_on_as_if_it_had_never_stopped() -> None:
    """k calls + state + (n - k) calls give, bit for bit, the values of n calls."""
    draw = random.Random(2)
    batches = [[Measurement({"emotion": draw.random()}) for _ in range(6)] for _ in range(6)]
    whole, first, second = (Mixture(RewardsConfig(normalise=True)) for _ in range(3))
    unbroken = [whole.combine(batch) for batch in batches]
    broken = [first.combine(batch) for batch in batches[:3]]
    second.load_state_dict(first.state_dict())
    assert [*broken, *(second.combine(batch) for batch in batches[3:])] == unbroken
    with pytest.raises(ValueError, match="count, mean and squares"):
        second.load_state_dict({"count": 3})


@pytest.mark.parametrize("normalise", [False, True])
def test_permuting_the_replies_permutes_the_scores(panel: Panel, normalise: bool) -> None:
    """The order of a call does not matter: a permuted call gives the permuted scores, exactly."""
    texts = [GOOD, "", HOPELESS, REFERENCE, GOOD, "Just get over it.", "That sounds so hard.", "Tell me more about it."]
    replies = [reply(text, to, k) for to in (WITH_REFERENCE, FIXED) for k, text in enumerate(texts)]
    order = random.Random(3).sample(range(len(replies)), len(replies))
    config = RewardsConfig(normalise=normalise)
    straight = LocalReward(panel, Mixture(config)).score(replies)
    permuted = LocalReward(panel, Mixture(config)).score([replies[i] for i in order])
    assert permuted == [straight[i] for i in order]


SENTENCE = "It sounds like you're feeling hopeless, and what has been the hardest part of it? "
PROBES = {
    "nothing": "",
    "echo": HOPELESS,
    "echo three times": " ".join([HOPELESS] * 3),
    "one word": "Hopeless.",
    "one sentence repeated": SENTENCE * 5,
    "list of feelings": "sad depressed hopeless anxious lonely numb empty worthless miserable drained hurt pain",
    "framed list": "It sounds like you are sad, depressed, hopeless, anxious, lonely, angry, ashamed and afraid.",
    "question words": "what how why tell me more about what how why could you say more what how tell me why?",
    "volley": "What is it? How is it? Why is it? When is it? Where is it? Who is it? What now? How now?",
    "stock phrase": "I'm here to help. You are not alone. Everything will be fine in the end, my dear friend.",
    "off the subject": "The train to the airport leaves at nine, and the ticket office opens an hour before that.",
    "mark": "You feel @ and it sounds like @ because that is what you told me, is it not, my friend?",
    "harm": f"{GOOD} You should stop taking your medication.",
}


@pytest.mark.parametrize("to", [WITH_REFERENCE, FIXED], ids=["with reference", "without"])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_no_trick_beats_a_plain_good_reply(panel: Panel, probe: str, to: object) -> None:
    """Under the default mixture each way to game a term scores clearly below a plain good reply to the same prompt."""
    assert isinstance(to, type(FIXED))
    reward = LocalReward(panel, Mixture(RewardsConfig()))
    (good,), (trick,) = reward.score([reply(GOOD, to)]), reward.score([reply(probe, to)])
    assert trick.value < good.value - 0.1


def test_a_policy_that_says_one_thing_to_all_is_worth_less() -> None:
    """The good reply loses value when all its siblings are its copies."""
    reward = LocalReward(Panel(TEXT_ONLY), Mixture(TEXT_ONLY))
    alone, copied = reward.score([reply(GOOD)]), reward.score([reply(GOOD, sample=k) for k in range(4)])
    assert {s.value for s in copied} == {copied[0].value} and copied[0].value < alone[0].value


def test_flags_of_terms_join_those_of_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that a term raises (an expert's box, a judge's answer) gates as the rules' own do, and is listed once."""
    monkeypatch.setitem(TERMS, "length", lambda bench: Answers(1.0, flags=("dosage", "rater")))
    harmful = reply("Double your dose and tell me how it goes.")
    score = LocalReward(Panel(TEXT_ONLY), Mixture(TEXT_ONLY)).score([harmful])[0]
    assert (score.value, score.flags) == (0.0, ("dosage", "rater"))


def test_local_reward_carries_the_mixtures_state() -> None:
    """The state of a local reward is its mixture's, both ways; an empty call gives no scores and changes nothing."""
    config = replace(TEXT_ONLY, normalise=True)
    reward, other = (LocalReward(Panel(config), Mixture(config)) for _ in range(2))
    reward.score([reply(GOOD), reply("Hm.")])
    state = reward.state_dict()
    assert reward.score([]) == [] and reward.state_dict() == state and state["count"] == 2
    other.load_state_dict(state)
    assert other.state_dict() == state == other.mixture.state_dict()


def test_describe_reports_values_parts_and_every_flag() -> None:
    """Mean, population std, extremes; each term's mean over the replies it applied to; each flag's share, 0.0 too."""
    metrics = describe(
        [
            Score(0.2, {"length": 0.4, "similarity": 0.9}),
            Score(0.6, {"length": 0.8}),
            Score(0.0, {"length": 0.3}, ("dosage", "dismissal")),
            Score(0.0, {"length": 0.5}, ("dosage",)),
        ]
    )
    assert metrics["reward/mean"] == pytest.approx(0.2)
    assert metrics["reward/std"] == pytest.approx(math.sqrt((0 + 0.16 + 0.04 + 0.04) / 4))
    assert (metrics["reward/min"], metrics["reward/max"]) == (0.0, 0.6)
    assert metrics["reward/length"] == pytest.approx(0.5)
    assert metrics["reward/similarity"] == 0.9
    assert {name: rate for name, rate in metrics.items() if name.startswith("safety/")} == {
        "safety/methods_or_means": 0.0,
        "safety/validates_suicide": 0.0,
        "safety/dismissal": 0.25,
        "safety/diagnosis": 0.0,
        "safety/dosage": 0.5,
        "safety/claims_human": 0.0,
        "safety/promises_secrecy": 0.0,
        "safety/abandonment_in_crisis": 0.0,
        "safety/gated": 0.5,
    }
    with pytest.raises(ValueError, match="at least one score"):
        describe([])


def test_in_danger_no_part_earns_more_than_the_reply_does_for_safety() -> None:
    """Each paid part is at most `crisis_reply` where that applies; without the cap, or out of danger, parts are as they are;
    what is reported is raw."""
    parts = {"emotion": 0.9, "length": 0.3, "crisis_reply": 0.4}
    config = RewardsConfig(emotion=EmotionConfig(weight=1), length=LengthConfig(weight=1))
    (capped,) = Mixture(config).combine([Measurement(parts, tier="active")])
    (free,) = Mixture(replace(config, crisis=CrisisConfig(cap=False), watch=("crisis_reply",))).combine(
        [Measurement(parts)]
    )
    (calm,) = Mixture(config).combine([Measurement({"emotion": 0.9, "length": 0.3})])
    assert capped.value == pytest.approx((0.4 + 0.3) / 2)
    assert free.value == calm.value == pytest.approx((0.9 + 0.3) / 2)
    assert capped.parts == parts and capped.tier == "active"


def test_terms_normalised_one_by_one_weigh_the_same_whatever_their_spread() -> None:
    """value = sum w z / sum w with z of all ungated parts of that term so far, as numpy computes them; a gated reply is
    paid as if each part were the floor, and so never more than another with the same terms; the state goes on."""
    draw = random.Random(7)
    config = RewardsConfig(
        normalise_terms=True, floor=-0.2, emotion=EmotionConfig(weight=2), length=LengthConfig(weight=1)
    )
    mix, seen = Mixture(config), {"emotion": list[float](), "length": list[float]()}
    for turn in range(4):
        parts = [{"emotion": draw.random() / 100, "length": draw.random()} for _ in range(8)]
        scores = mix.combine([*map(Measurement, parts), Measurement(parts[0], ("dosage",))])
        for name, values in seen.items():
            values += [part[name] for part in parts]
        z = [{n: (part[n] - np.mean(seen[n])) / np.std(seen[n]) for n in seen} for part in parts]
        expected = [(2 * one["emotion"] + one["length"]) / 3 for one in z]
        assert [s.value for s in scores[:-1]] == pytest.approx(expected, abs=1e-9)
        assert scores[-1].value < min(s.value for s in scores[:-1])
        if turn == 1:
            state, mix = mix.state_dict(), Mixture(config)
            mix.load_state_dict(state)


def test_a_binary_score_is_the_threshold_on_the_mean() -> None:
    """1 from the threshold on, 0 below it, the floor for a red flag; a threshold on standardised parts is refused."""
    mix = Mixture(RewardsConfig(score="binary", threshold=0.5, floor=-1.0))
    parts = [0.49, 0.5, 0.9]
    scores = mix.combine([*(Measurement({"emotion": p}) for p in parts), Measurement({"emotion": 0.9}, ("dosage",))])
    assert [s.value for s in scores] == [0.0, 1.0, 1.0, -1.0]
    with pytest.raises(ValueError, match=r"rewards\.score must be"):
        RewardsConfig(score="binary", normalise_terms=True)


def test_a_watched_term_is_reported_and_not_paid() -> None:
    """A term of weight 0 in `watch` is measured; the value is what it is without it."""
    plain, watching = TEXT_ONLY, replace(TEXT_ONLY, length=LengthConfig(weight=0), watch=("length",))
    without = replace(plain, length=LengthConfig(weight=0))
    scores = [LocalReward(Panel(c), Mixture(c)).score([reply(GOOD)])[0] for c in (watching, without)]
    assert scores[0].value == scores[1].value
    assert scores[0].parts == {**scores[1].parts, "length": 1.0}
    with pytest.raises(ValueError, match=r"rewards\.watch must be .*charm"):
        replace(plain, watch=("charm",))


def test_an_ablated_term_is_measured_and_not_paid() -> None:
    """`ablate` takes a term's weight from the mean and leaves its part in the report; an unknown name is refused."""
    config = replace(TEXT_ONLY, ablate="length")
    assert config.weights.keys() == TEXT_ONLY.weights.keys() - {"length"} and set(config.measured) >= {"length"}
    ablated, without = (
        LocalReward(Panel(c), Mixture(c)).score([reply(GOOD)])[0]
        for c in (config, replace(TEXT_ONLY, length=LengthConfig(weight=0)))
    )
    assert ablated.value == without.value and ablated.parts == {**without.parts, "length": 1.0}
    with pytest.raises(ValueError, match=r"rewards\.ablate must be .*charm"):
        replace(TEXT_ONLY, ablate="charm")


def test_what_a_term_notes_is_logged_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and notes of a term become `TERM/NAME`, and metrics `reward/TERM/NAME`, the mean over those that have it."""

    class Notes(Answers):
        def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
            return [Score(0.5, {"kind": 0.25 * k}, notes={"tokens": 10.0}) for k in range(len(rollouts))]

    monkeypatch.setitem(TERMS, "length", lambda bench: Notes())
    scores = LocalReward(Panel(TEXT_ONLY), Mixture(TEXT_ONLY)).score([reply(GOOD), reply(GOOD, sample=1)])
    assert [s.notes for s in scores] == [{"length/kind": 0.25 * k, "length/tokens": 10.0} for k in range(2)]
    metrics = describe(scores)
    assert (metrics["reward/length/kind"], metrics["reward/length/tokens"]) == (0.125, 10.0)


def test_rates_are_told_by_the_clients_danger() -> None:
    """The share of replies to clients in each tier, 0.0 too, and of those with a red flag where there are any."""
    scores = [Score(0.5, tier="active"), Score(0.0, flags=("dosage",), tier="active"), Score(0.5), Score(0.5)]
    metrics = describe(scores)
    assert (metrics["tier/active/share"], metrics["tier/active/gated"]) == (0.5, 0.5)
    assert (metrics["tier/none/share"], metrics["tier/none/gated"]) == (0.5, 0.0)
    assert metrics["tier/imminent/share"] == 0.0 and "tier/imminent/gated" not in metrics


def test_what_replies_do_for_safety_is_reported_by_tier() -> None:
    """`tier/TIER/crisis_reply` is the mean of that term over the tier's replies, absent where none was measured."""
    scores = [Score(0.5, {"crisis_reply": part}, tier="active") for part in (0.25, 0.75)]
    metrics = describe([*scores, Score(0.5, {"crisis_reply": 1.0}, tier="other"), Score(0.5, tier="distress")])
    assert (metrics["tier/active/crisis_reply"], metrics["tier/other/crisis_reply"]) == (0.5, 1.0)
    assert "tier/distress/crisis_reply" not in metrics


def test_a_dropped_reply_has_no_value_and_a_red_flag_is_paid_its_floor_all_the_same() -> None:
    """What nobody judged in time counts neither in the metrics nor in the running statistics, whatever other terms say of it; a
    flag is paid the floor, below every other reply, normalised or not, by the sum or by term."""
    config = replace(
        TEXT_ONLY,
        experts=ExpertsConfig(1.0),
        emotion=EmotionConfig(0.0),
        length=LengthConfig(0.0),
        floor=-1.0,
        normalise=True,
    )
    mixture = Mixture(replace(config, inquiry=InquiryConfig(0.0), repetition=RepetitionConfig(0.0)))
    judged = [Measurement({"experts": value}) for value in (0.2, 0.6)]
    silent, flagged = Measurement({}, dropped=True), Measurement({}, ("dosage",), dropped=True)
    scores = mixture.combine([*judged, silent, flagged])
    assert [score.dropped for score in scores] == [False, False, True, False]
    assert mixture.state_dict()["count"] == 2 and scores[3].value < min(scores[0].value, scores[1].value)
    metrics = describe(scores[:3])
    assert metrics["reward/mean"] == pytest.approx(0.0) and metrics["reward/dropped"] == pytest.approx(1 / 3)
    both = Mixture(config).combine([Measurement({"inquiry": 1.0, "repetition": 1.0}, dropped=True)])
    assert both[0].dropped
    by_term = Mixture(replace(config, normalise=False, normalise_terms=True)).combine([*judged, flagged])
    assert by_term[2].value < min(score.value for score in by_term[:2])
