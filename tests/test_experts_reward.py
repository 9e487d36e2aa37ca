"""Experts as a reward: whom they see, what is paid before they answer, what comes back when they have, and what never waits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import isfinite

from rewards.config import EncoderConfig
from rewards.experts.client import ExpertReward
from rewards.experts.interface import Opinion, with_opinion
from rewards.experts.late import LateScores
from rewards.experts.meanwhile import Asynchronous, alarm
from rewards.experts.opinions import Synchronous, item_of, key_of
from rewards.experts.selection import choose
from rewards.experts.serve import Server
from rewards.experts.session import rating_session
from rewards.experts.surrogate import UNKNOWN, Guess, Surrogate
from rewards.experts.types import Item
from rewards.mixture import Mixture
from rewards.panel import Measurement
from rewards.rated_replies import RatedReply
from rewards.term_config import ExpertsConfig
from rewards.types import RewardError, Score, ScoredRollout
from rl.batch import collate
from rollout.types import Rollout, Speaker, Turn, VersionSpan
from tests.one_term import one_term
from tests.reward_replies import reply

KIND = (
    "It sounds like you have carried this alone. What weighs most?",
    "I hear how sad you are, and I am glad that you told me.",
    "That must be so hard. Would you like to tell me more about it?",
    "You sound exhausted by all of this. What would help tonight?",
)
COLD = ("Stop complaining.", "Everybody has problems, so what.", "Not my business.", "Get over it and go to work.")


def at(step: int, text: str, sample: int = 0) -> Rollout:
    """A reply that the policy of `step` gave."""
    made = reply(text, sample=sample)
    return replace(made, versions=(VersionSpan(step, 0, len(made.response_ids)),))


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    """One that has learned that kind replies are liked."""
    fitted = Surrogate(EncoderConfig(), members=5, seed=0)
    trial = fitted.learn(ratings(48))
    assert trial is not None and trial.promoted
    return fitted


def ratings(count: int, *, turned: bool = False) -> list[RatedReply]:
    """Kind and cold replies, a few words apart, each its own group."""
    turn = (Turn(Speaker.CLIENT, "I feel so low."),)
    said = [((KIND if k % 2 else COLD)[k // 2 % 4] + f" ({k // 8})", float(k % 2 != turned)) for k in range(count)]
    return [RatedReply(f"item {k}", turn, text, 0.1 + 0.8 * score) for k, (text, score) in enumerate(said)]


class Desk:
    """A rating service in memory that holds its callers to the contract: known ids, and no word before it is given one."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.said: dict[str, ExpertReward] = {}
        self.events: list[tuple[str, dict[str, object]]] = []
        self.down = False
        self.stuck: dict[str, str] = {}
        self.closed_from: list[int] = []

    def add(self, items: Sequence[Item]) -> list[str]:
        if self.down:
            raise RewardError("no answer")
        self.items |= {item.id: item for item in items}
        return [item.id for item in items]

    def rewards(
        self,
        run: str,
        step: int,
        ids: Sequence[str],
        *,
        least: int = 1,
        wait_s: float = 0.0,
        every: bool = False,
        settle_s: float = 0.0,
    ) -> tuple[dict[str, ExpertReward], list[str], dict[str, str]]:
        if self.down:
            raise RewardError("no answer")
        assert set(ids) <= self.items.keys() and len(set(ids)) == len(ids)
        still = [i for i in ids if i not in self.said]
        found = {i: self.said[i] for i in ids if i in self.said}
        return {} if every and still else found, still, {i: self.stuck[i] for i in still if i in self.stuck}

    def close_from(self, run: str, step: int) -> None:
        self.closed_from.append(step)

    def close(self, ids: Sequence[str]) -> None:
        assert set(ids) <= self.items.keys()

    def event(self, kind: str, body: dict[str, object]) -> int:
        self.events.append((str(kind), dict(body)))
        return len(self.events)

    def rate(self, value: float = 0.9, flags: tuple[str, ...] = ()) -> None:
        """Somebody judges all that is there."""
        self.said |= {i: ExpertReward(value, 0.1, ("r",), flags) for i in self.items if i not in self.said}


def test_the_random_part_is_random_and_the_rest_is_where_the_ensemble_knows_least() -> None:
    """As many as asked for, none twice; the quota by chance does not depend on disagreement or likeness; of two copies of the
    most disputed reply one is enough; the same seed chooses the same."""
    vectors = np.eye(6)[[0, 0, 1, 2, 3, 4]]
    std = [0.9, 0.9, 0.5, 0.4, 0.01, 0.01]
    for seed in range(20):
        choice = choose(std, vectors, 3, 0.3, seed)
        assert len(choice.chosen) == 3 and len(choice.by_chance) == 1 and choice.by_chance <= set(choice.chosen)
        assert choose(std, vectors, 3, 0.3, seed) == choice
        assert not {0, 1} <= set(choice.chosen) or choice.by_chance & {0, 1}
    drawn = [next(iter(choose(std, vectors, 3, 0.3, seed).by_chance)) for seed in range(600)]
    assert np.bincount(drawn, minlength=6).min() > 60  # 100 each on average
    assert choose(std, vectors, 99, 0.3, 0).chosen == tuple(range(6)) and choose(std, vectors, 0, 0.3, 0).chosen == ()


def test_a_surrogate_learns_what_raters_like_and_is_promoted_only_where_it_is_better(surrogate: Surrogate) -> None:
    """Before the first fit every reply is worth the same; afterwards unseen kind replies are worth more than cold ones; a fit to
    ratings turned round, judged on what they say, is promoted, one to the same ratings again is not; few teach nothing."""
    new = Surrogate(EncoderConfig(), members=5, seed=0)
    turn = (Turn(Speaker.CLIENT, "I feel so low."),)
    texts = ["I hear you. What has been hardest?", "Stop it, nobody cares."]
    assert [guess.mean for guess in new.guess([(turn, text) for text in texts])] == [UNKNOWN, UNKNOWN]
    assert new.learn(ratings(6)) is None
    kind, cold = surrogate.guess([(turn, text) for text in texts])
    assert kind.mean > cold.mean + 0.2 and kind.std > 0
    assert kind.cautious(0.0) == pytest.approx(min(max(kind.mean, 0), 1)) and kind.cautious(2.0) < kind.cautious(0.0)
    again = surrogate.learn(ratings(48))
    assert again is not None and not again.promoted and again.error >= again.error_before


def test_guesses_go_on_while_the_surrogate_is_fitted() -> None:
    """Both look at texts at the same time, from two threads, and neither loses any."""
    both = Surrogate(EncoderConfig(), members=5, seed=1)
    turn, failures = (Turn(Speaker.CLIENT, "I feel so low."),), list[BaseException]()

    def fit() -> None:
        try:
            for _ in range(3):
                both.learn(ratings(48))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    while thread.is_alive():
        assert len(both.guess([(turn, text) for text in (*KIND, *COLD)])) == 8
    thread.join()
    assert not failures


def test_the_step_waits_until_every_reply_is_rated(tmp_path: Path) -> None:
    """Over real HTTP, with simulated raters: one opinion per reply, in order, better for the better reply; an empty reply is
    worth 0 and bothers nobody; asking again gives the same numbers; the chain tells which ratings the update used."""
    from rewards.experts import audit, ledger
    from rewards.experts.store import DATABASE

    said: list[str] = []
    config = ExpertsConfig(1.0, simulated=2, ratings=2)
    with rating_session(config, tmp_path, 0, said.append) as client:
        experts = Synchronous(config, "run", client, None, say=said.append)
        replies = [at(3, KIND[2], 0), at(3, "No.", 1), at(3, " ", 2)]
        first = experts.judge(replies, ["none"] * 3)
        assert first[0].value > first[1].value > 0 == first[2].value  # type: ignore[operator]
        assert first[0].notes["rated"] == 1.0
        assert experts.judge(replies, ["none"] * 3) == first
        experts.used(3, paid(replies, first))
        experts.saved(3, "ab" * 32)
    assert "no person is asked" in said[0]
    with ledger.opened(tmp_path / "experts" / DATABASE) as db:
        ledger.check(db)
        trace = audit.trace(audit.rows(db), "run", 4)
    assert len(trace.rewards) == 2 and len(trace.ratings) >= 4 and not trace.unfixed


@pytest.mark.parametrize("overdue", ["drop", "surrogate"])
def test_what_nobody_rates_in_time_is_dropped_or_guessed(overdue: str, surrogate: Surrogate) -> None:
    """After the time-out, not before; the raters' own word counts where there is one; what was dropped teaches nothing, and
    what was guessed has the surrogate's score."""
    desk, said = Desk(), list[str]()
    config = ExpertsConfig(1.0, timeout_s=0.3, overdue=overdue)  # type: ignore[arg-type]
    experts = Synchronous(config, "run", desk, surrogate, say=said.append)  # type: ignore[arg-type]
    rated = at(0, KIND[0], 0)
    desk.said[item_of(rated, "run", "none", wanted=1, priority=0.0).id] = ExpertReward(0.8, 0.1, ("r",), ())
    began = time.monotonic()
    opinions = experts.judge([rated, at(0, COLD[0], 1)], ["none", "none"])
    assert time.monotonic() - began >= 0.3 and "1 of 2 replies not rated" in said[-1]
    assert opinions[0].value == 0.8 and opinions[0].notes["rated"] == 1.0
    if overdue == "surrogate":
        assert opinions[1].value is not None and opinions[1].value < 0.5 and opinions[1].notes["rated"] == 0.0
        return
    assert opinions[1].value is None
    mixture = Mixture(one_term("experts", config))
    scores = mixture.combine([with_opinion(Measurement({}), opinion) for opinion in opinions])
    batch = collate([ScoredRollout(r, s) for r, s in zip([rated, at(0, COLD[0], 1)], scores, strict=True)])
    assert [bool(row.any()) for row in batch.mask_BT] == [True, False] and isfinite(batch.score_B).all()


def test_a_reply_that_every_rater_skipped_is_dropped_and_a_hopeless_wait_says_why() -> None:
    """Others' ratings are waited for; then those that are rated are fixed, and the skipped one teaches nothing. Where nobody can
    rate at all, the first look says so and what helps."""
    desk, said = Desk(), list[str]()
    experts = Synchronous(ExpertsConfig(1.0), "run", desk, None, say=said.append)  # type: ignore[arg-type]
    assert desk.closed_from == [0]
    replies = [at(0, KIND[0], 0), at(0, KIND[1], 1)]
    one, two = (item_of(r, "run", "none", wanted=1, priority=0.0).id for r in replies)
    desk.said[one] = ExpertReward(0.8, 0.1, ("r",), ())
    desk.stuck[two] = "skipped"
    assert [opinion.value for opinion in experts.judge(replies, ["none"] * 2)] == [0.8, None]
    assert "skipped by every rater" in said[-1]
    late = Synchronous(ExpertsConfig(1.0, timeout_s=0.2, overdue="drop"), "run", desk, None, say=said.append)  # type: ignore[arg-type]
    desk.stuck[two] = "crisis"
    late.judge(replies, ["none", "active"])
    assert any("only raters who take crisis conversations" in line and "invite" in line for line in said)


def test_what_raters_said_outlives_the_run(surrogate: Surrogate) -> None:
    """A run that resumes has its surrogate fitted to all earlier ratings before the first guess, and closes what was left."""
    desk = Desk()
    before = asynchronous(desk, Fixed(), share=1.0)
    replies = [at(0, f"{(KIND if k % 2 else COLD)[k // 2 % 4]} ({k})", k) for k in range(40)]
    before.judge(replies, ["none"] * 40)
    before.round()
    for item in desk.items.values():
        desk.said[item.id] = ExpertReward(0.9 if item.reply.startswith(KIND) else 0.1, 0.1, ("r",), ())
    before.round()
    state = json.loads(json.dumps(before.state_dict()))
    after = asynchronous(desk, Surrogate(EncoderConfig(), members=5, seed=0), share=0.1)
    with after:
        after.load_state_dict(state)
        kind, cold = (
            o.value for o in after.judge([at(1, "I hear you. What is hardest?"), at(1, "Stop it.", 1)], ["none"] * 2)
        )
    assert kind > cold + 0.1 and desk.closed_from == [0]  # type: ignore[operator]
    assert after.state_dict() == state


def test_a_courier_that_breaks_is_told_at_the_next_step() -> None:
    """Not a service that is down, which is waited for, but an error in what the courier does."""

    class Broken(Fixed):
        def learn(self, rated: Sequence[RatedReply]) -> None:
            raise ValueError("singular matrix")

    desk = Desk()
    with asynchronous(desk, Broken(), share=1.0, refit_every=1) as experts:
        experts.judge([at(0, KIND[0])], ["none"])
        until = time.monotonic() + 60
        while not desk.items and time.monotonic() < until:
            time.sleep(0.05)
        desk.rate()
        with pytest.raises(RewardError, match="singular matrix"):
            while time.monotonic() < until:
                time.sleep(0.1)
                experts.judge([at(1, KIND[1])], ["none"])


def paid(rollouts: Sequence[Rollout], opinions: Sequence[Opinion]) -> list[ScoredRollout]:
    """The scores that these opinions give."""
    notes = ({f"experts/{name}": number for name, number in opinion.notes.items()} for opinion in opinions)
    return [ScoredRollout(r, Score(o.value or 0.0, notes=n)) for r, o, n in zip(rollouts, opinions, notes, strict=True)]


def asynchronous(desk: Desk, guesses: object, **settings: object) -> Asynchronous:
    config = replace(ExpertsConfig(1.0, mode="asynchronous", refit_every=1000), **settings)  # type: ignore[arg-type]
    return Asynchronous(config, "run", desk, guesses, seed=0, say=lambda _: None)  # type: ignore[arg-type]


class Fixed:
    """A surrogate that says the same of everything."""

    def __init__(self, mean: float = 0.5) -> None:
        self.mean = mean

    def guess(self, answers: Sequence[object]) -> list[Guess]:
        rng = np.random.default_rng(len(answers))
        return [Guess(self.mean, 0.1, v / np.linalg.norm(v)) for v in rng.normal(size=(len(answers), 8))]

    def learn(self, rated: Sequence[RatedReply]) -> None:
        return None


def test_the_learner_never_waits_and_scores_come_back_when_raters_have_spoken() -> None:
    """A tenth of the replies goes out; the surrogate's cautious score is paid at once; when raters speak their own score arrives
    once; a service that is down delays both and loses nothing."""
    desk = Desk()
    experts = asynchronous(desk, Fixed(), share=0.1)
    replies = [at(0, f"{KIND[k % 4]} {k}", k) for k in range(20)]
    desk.down = True
    began = time.monotonic()
    opinions = experts.judge(replies, ["none"] * 20)
    assert time.monotonic() - began < 10
    assert [o.value for o in opinions] == [pytest.approx(0.4)] * 20 and all(o.notes["rated"] == 0.0 for o in opinions)
    with pytest.raises(RewardError):
        experts.round()
    asked = experts.asked()
    assert len(asked) == 2 and not experts.arrived() and not desk.items
    desk.down = False
    experts.used(0, paid(replies, opinions))
    experts.round()
    assert len(desk.items) == 2 and experts.metrics()["experts/waiting"] == 2
    kind, body = desk.events[0]
    assert (kind, body["rewards"]) == ("update", []) and set(body["guessed"]) == set(desk.items)  # type: ignore[call-overload]
    desk.rate(0.9, ("dosage",))
    experts.round()
    arrived = experts.arrived()
    assert arrived.keys() == asked and all((o.value, o.flags) == (0.9, ("dosage",)) for o in arrived.values())
    assert not experts.arrived() and not experts.asked()


def test_the_courier_works_beside_the_loop(tmp_path: Path) -> None:
    """With a real service and simulated raters: nothing is called by hand, and the raters' scores arrive."""
    config = ExpertsConfig(1.0, mode="asynchronous", simulated=2, share=0.5)
    with rating_session(config, tmp_path, 0, lambda _: None) as client:
        with Asynchronous(config, "run", client, Fixed(), seed=0, say=print) as experts:
            experts.judge([at(0, f"{KIND[k % 4]} {k}", k) for k in range(8)], ["none"] * 8)
            until, arrived = time.monotonic() + 120, dict[str, Opinion]()
            while len(arrived) < 4 and time.monotonic() < until:
                arrived |= experts.arrived()
                time.sleep(0.05)
        assert len(arrived) == 4 and all(
            0 <= opinion.value <= 1 for opinion in arrived.values() if opinion.value is not None
        )


def test_a_batch_stays_as_large_as_it_was_and_late_scores_displace_only_what_nobody_will_rate() -> None:
    """Late replies come last, with the raters' score; displaced are fresh replies that are not before raters; never more than the
    share; after the window a score comes too late, and is counted."""
    late = LateScores(window=2, share=0.5, seed=0)
    first = [at(0, f"old {k}", k) for k in range(4)]
    late.keep(first, [Measurement({}) for _ in first], {key_of(r) for r in first})
    fresh = [at(1, f"new {k}", k) for k in range(4)]
    late.keep(fresh, [Measurement({}) for _ in fresh], {key_of(fresh[0])})
    scored = [ScoredRollout(r, Score(0.5, flags=("dosage",) if r is fresh[1] else ())) for r in fresh]

    def combine(measured: Sequence[Measurement]) -> list[Score]:
        return [Score(m.parts["experts"]) for m in measured]

    arrived = {key_of(r): Opinion(0.9) for r in first[:3]}
    batch = late.exchange(scored, arrived, combine)
    assert len(batch) == 4 and [item.score.value for item in batch] == [0.5, 0.5, 0.9, 0.9]
    assert {fresh[0].id, fresh[1].id} <= {
        item.rollout.id for item in batch if item.score.value == 0.5
    }  # one is before raters, the other has a red flag
    again = late.exchange(scored, {}, combine)  # three had come, half of four had room: the third comes with the next
    assert [item.score.value for item in again] == [0.5, 0.5, 0.5, 0.9] and late.metrics() == {"experts/missed": 0.0}
    later = [at(4, "much later", k) for k in range(4)]
    late.keep(later, [Measurement({}) for _ in later], set())
    kept = [ScoredRollout(r, Score(0.5)) for r in later]
    assert late.exchange(kept, {key_of(first[3]): Opinion(0.9)}, combine) == kept
    assert late.metrics() == {"experts/missed": 1.0}


def test_an_alarm_sounds_when_surrogate_and_raters_part() -> None:
    """Not on few replies, not on noise, not on a small gap that is sure; on a large one that is sure, once, into the chain."""
    assert not alarm([0.5] * 7, 0.15) and alarm([0.5] * 8, 0.15) and alarm([-0.5] * 8, 0.15)
    assert not alarm([0.1] * 40, 0.15) and not alarm([1.0, -0.6] * 6, 0.15)
    desk, said = Desk(), list[str]()
    config = ExpertsConfig(
        1.0, mode="asynchronous", share=1.0, random_share=1.0, refit_every=4
    )  # it refits, and is refused
    experts = Asynchronous(config, "run", desk, Fixed(0.9), seed=0, say=said.append)  # type: ignore[arg-type]
    for step in range(6):
        experts.judge([at(step, f"{KIND[k % 4]} {k}", k) for k in range(3)], ["none"] * 3)
        experts.round()
        desk.rate(0.2)
        experts.round()
    assert len(said) == 1 and "0.70 more than raters" in said[0]
    assert [kind for kind, _ in desk.events] == ["alarm"] and experts.metrics()["experts/alarm"] == 1.0


def test_settings_that_cannot_work_are_refused_by_name() -> None:
    """A service elsewhere with simulated raters, no time-out where one is needed, shares out of range."""
    for settings, said in (
        ({"url": "http://h:1", "simulated": 1}, r"rewards\.experts\.simulated"),
        ({"overdue": "drop"}, r"rewards\.experts\.timeout_s"),
        ({"share": 0.0}, r"rewards\.experts\.share"),
        ({"members": 1}, r"rewards\.experts\.members"),
        ({"simulated": 1, "ratings": 2}, r"rewards\.experts\.simulated"),
        ({"url": "somewhere"}, r"rewards\.experts\.url"),
    ):
        with pytest.raises(ValueError, match=said):
            ExpertsConfig(1.0, **settings)  # type: ignore[arg-type]
    elsewhere = ExpertsConfig(1.0, url="http://h:1")
    with pytest.raises(ValueError, match="ATTUNE_RUN_TOKEN"), rating_session(elsewhere, Path(), 0, print):
        pass


def test_a_service_that_is_not_there_or_refuses_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, with the setting, the address, the token's variable and where the token stands."""
    monkeypatch.setenv("ATTUNE_RUN_TOKEN", "no-such-token")
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=r"rewards\.experts\.url .*ATTUNE_RUN_TOKEN.*service\.json"),
        rating_session(ExpertsConfig(1.0, url="http://127.0.0.1:9"), tmp_path, 0, print),
    ):
        pass
    with (
        Server(tmp_path / "experts") as server,
        pytest.raises(ValueError, match=r"status 401"),
        rating_session(ExpertsConfig(1.0, url=server.url), tmp_path, 0, print),
    ):
        pass
    assert time.monotonic() - began < 30
