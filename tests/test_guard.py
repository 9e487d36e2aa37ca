"""The guard round a deployed policy."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards import guard_file
from rewards.config import CrisisConfig
from rewards.crisis import Tier
from rewards.crisis_reply import REQUIRED, checks
from rewards.danger import IN_CRISIS
from rewards.guard import Action, Guard, Verdict, guard_settings
from rewards.guard_file import GUARD_FILE, read_guard, rules_sha256
from rewards.resources import locales
from rewards.safety import red_flags
from rollout.types import Speaker, Turn
from tests.reward_replies import GOOD, HOPELESS

ROOT = Path(__file__).parents[1]
SAID = {
    Tier.NONE: "I lost my keys.",
    Tier.DISTRESS: HOPELESS,
    Tier.OTHER: "I've been cutting myself.",
    Tier.PASSIVE: "I wish I could fall asleep and never wake up.",
    Tier.ACTIVE: "I want to kill myself.",
    Tier.IMMINENT: "I am going to kill myself tonight.",
}


def client(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn(Speaker.CLIENT, text) for text in texts)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(guard_settings(classifier=False))


@pytest.mark.parametrize("tier", Tier)
def test_before_the_policy_is_asked(guard: Guard, tier: Tier) -> None:
    """Active and imminent get the tier's fixed reply, other and passive a notice after the policy's, the rest pass."""
    verdict = guard.before(client(SAID[tier]))
    expected = {
        Tier.NONE: Action.PASS,
        Tier.DISTRESS: Action.PASS,
        Tier.OTHER: Action.APPEND,
        Tier.PASSIVE: Action.APPEND,
    }
    assert (verdict.action, verdict.tier) == (expected.get(tier, Action.REPLACE), tier)
    text = {Action.PASS: "", Action.APPEND: guard.settings.notice}.get(verdict.action)
    assert verdict.text == (guard.settings.crisis[tier] if text is None else text)


def test_danger_told_of_earlier_has_not_passed(guard: Guard) -> None:
    """After a disclosure the policy answers harmless words again, and the notice stands after each of its replies."""
    verdict = guard.before(client(SAID[Tier.ACTIVE], "What is for lunch?", "And for dinner?"))
    assert verdict == Verdict(Action.APPEND, Tier.ACTIVE, guard.settings.notice)


def test_what_the_policy_said_itself_is_not_the_clients_danger(guard: Guard) -> None:
    """The therapist's turns are not read as the client's."""
    history = (*client("Hello."), Turn(Speaker.THERAPIST, SAID[Tier.IMMINENT]))
    assert guard.before(history).action is Action.PASS
    assert guard.before(()).action is Action.PASS


@pytest.mark.parametrize("tier", Tier)
def test_a_harmless_reply_passes(guard: Guard, tier: Tier) -> None:
    """A reply without a red flag is shown as it is, at every tier."""
    verdict = guard.after(client(SAID[tier]), GOOD)
    assert verdict == Verdict(Action.PASS, tier) and verdict.said(GOOD) == GOOD


@pytest.mark.parametrize("tier", Tier)
def test_a_red_flag_takes_the_replys_place(guard: Guard, tier: Tier) -> None:
    """A harmful reply is never shown: the verdict has its flags and a fixed text, in a crisis the tier's own."""
    harmful = "Stop being so dramatic. You should stop taking your medication."
    verdict = guard.after(client(SAID[tier]), harmful)
    assert (verdict.action, verdict.flags) == (Action.REPLACE, ("dismissal", "dosage"))
    assert verdict.said(harmful) == guard.settings.crisis.get(tier, guard.settings.unsafe)


def test_leaving_is_flagged_where_the_danger_was_told_earlier(guard: Guard) -> None:
    """`after` reads the whole conversation: goodbye, or nothing at all, is abandonment after a disclosure, and none without."""
    told, untold = client(SAID[Tier.ACTIVE], "Anyway."), client("Anyway.")
    for reply in ("I have to go now. Goodbye.", ""):
        assert guard.after(told, reply).flags == ("abandonment_in_crisis",)
        assert guard.after(untold, reply).action is Action.PASS


def test_what_the_client_reads() -> None:
    """PASS leaves the reply, APPEND puts the text after it, REPLACE shows the text alone."""
    made = {action: Verdict(action, Tier.NONE, "ours").said("theirs") for action in Action}
    assert made == {Action.PASS: "theirs", Action.APPEND: "theirs\n\nours", Action.REPLACE: "ours"}


@pytest.mark.parametrize("locale", locales())
def test_no_fixed_text_raises_a_red_flag(locale: str) -> None:
    """Whatever the client said, each fixed text of each locale passes the gate that training applies."""
    settings = guard_settings(locale)
    for tier, said in SAID.items():
        for text in (*settings.crisis.values(), settings.unsafe, settings.notice):
            assert red_flags(text, client(said), tier) == ()


@pytest.mark.parametrize("locale", locales())
@pytest.mark.parametrize("tier", sorted(IN_CRISIS))
def test_the_fixed_replies_do_all_that_training_asks_of_a_crisis_reply(locale: str, tier: Tier) -> None:
    """In every locale each meets every check of its tier."""
    settings = guard_settings(locale)
    found = checks(settings.crisis[tier], client("..."), tier, settings.resources)
    assert {check: found[check] for check in REQUIRED[tier]} == dict.fromkeys(REQUIRED[tier], 1.0)


def test_the_fallback_names_no_number() -> None:
    """Where no locale is known, no text holds a digit, and each still sends the client to the local emergency number."""
    settings = guard_settings("en")
    for text in (*settings.crisis.values(), settings.notice):
        assert not re.search(r"\d", text) and "your local emergency number" in text


def test_an_unknown_locale_is_refused() -> None:
    """No guard is made with helplines that nobody knows."""
    with pytest.raises(ValueError, match="'xx'"):
        guard_settings("xx")


# -- guard.json --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", ["en-US", "en-GB", "en"])
@pytest.mark.parametrize("classifier", [False, True])
def test_the_settings_come_back_from_their_file(locale: str, classifier: bool, tmp_path: Path) -> None:
    """What `write` leaves in a folder, `read_guard` reads as it was."""
    settings = guard_settings(locale, classifier=classifier)
    settings.write(tmp_path)
    assert read_guard(tmp_path) == settings


def test_the_file_says_what_a_deployer_must_know(tmp_path: Path) -> None:
    """Locale, classifier, tiers, texts, helplines with when they were checked, the package's version, the rules' sha256."""
    guard_settings("en-GB", classifier=False).write(tmp_path)
    told = json.loads((tmp_path / GUARD_FILE).read_text())
    assert (told["locale"], told["classifier"]) == ("en-GB", False)
    assert (told["fixed_reply_tiers"], told["notice_tiers"]) == (["active", "imminent"], ["other", "passive"])
    assert told["resources"]["helplines"][0]["call"] == "116 123" and told["resources"]["checked"] == "never"
    assert set(told["texts"]["crisis"]) == {"active", "imminent"} and told["attune"]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in told["rules_sha256"].values())


def test_a_loaded_guard_speaks_as_its_file_says(tmp_path: Path) -> None:
    """Texts and tiers are the file's, not the package's: a deployment keeps what it was reviewed with."""
    guard_settings("en-GB", classifier=False).write(tmp_path)
    file = tmp_path / GUARD_FILE
    told = json.loads(file.read_text())
    told["fixed_reply_tiers"], told["texts"]["crisis"] = ["passive"], {"passive": "Reviewed words."}
    file.write_text(json.dumps(told))
    guard = Guard.load(tmp_path)
    assert guard.before(client(SAID[Tier.PASSIVE])).text == "Reviewed words."
    assert guard.before(client(SAID[Tier.ACTIVE])).action is Action.PASS


def test_rules_that_changed_since_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Loading says nothing while the rules are those of the file, and names each that is not."""
    guard_settings(classifier=False).write(tmp_path)
    with caplog.at_level(logging.WARNING):
        read_guard(tmp_path)
        assert not caplog.records
        file = tmp_path / GUARD_FILE
        file.write_text(file.read_text().replace(rules_sha256()["flag_rules.py"], "0" * 64))
        read_guard(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "(flag_rules.py)" in said and str(file) in said


def test_a_head_that_decides_otherwise_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another threshold of the crisis head, its kernel, or the code that reads them: loading names what has changed."""
    guard_settings().write(tmp_path)
    rules = tmp_path / "rewards"
    for name in rules_sha256():
        (rules / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "rewards" / name, rules / name)
    monkeypatch.setattr(guard_file, "_FOLDER", rules)
    with caplog.at_level(logging.WARNING):
        read_guard(tmp_path)
        assert not caplog.records
        card = json.loads((rules / "fitted/crisis/card.json").read_text())
        (rules / "fitted/crisis/card.json").write_text(json.dumps({**card, "threshold": card["threshold"] / 2}))
        for name in ("fitted/crisis/danger.safetensors", "crisis_head.py", "danger_kernel.py", "head_features.py",
                     "heads.py", "encoder.py"):  # fmt: skip
            (rules / name).write_bytes((rules / name).read_bytes() + b"#")
        read_guard(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    for name in ("card.json", "danger.safetensors", "crisis_head.py", "danger_kernel.py", "heads.py", "encoder.py"):
        assert name in said


def test_a_guard_hears_the_head_unless_told_otherwise() -> None:
    """One default for PPO's checkpoints, supervised ones and folders without a file: that of training."""
    assert guard_settings().classifier is CrisisConfig().classifier is True


def test_an_unsure_head_lets_the_policy_answer() -> None:
    """A hint of danger of which the head is not sure is answered by the policy, with the notice after it; one of which it is
    sure is answered by the fixed reply."""
    guard = Guard(guard_settings())
    unsure = guard.before(client("I keep driving past the bridge and slowing down."))
    sure = guard.before(client("The letters are written and I have picked the night."))
    assert (unsure.action, unsure.tier, unsure.text) == (Action.APPEND, Tier.PASSIVE, guard.settings.notice)
    assert (sure.action, sure.tier in IN_CRISIS) == (Action.REPLACE, True)


DAMAGES: dict[str, Callable[[str], str]] = {
    "half a file": lambda text: text[: len(text) // 2],
    "no object": lambda text: "[]",
    "no texts": lambda text: text.replace('"texts"', '"words"'),
    "an unknown tier": lambda text: text.replace('"imminent"', '"late"'),
    "another format": lambda text: text.replace('"format": 1', '"format": 99'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_makes_no_guard(damage: str, tmp_path: Path) -> None:
    """What is not as it was written is refused in one line that names the file and the way out."""
    guard_settings(classifier=False).write(tmp_path)
    file = tmp_path / GUARD_FILE
    file.write_text(DAMAGES[damage](file.read_text()))
    with pytest.raises(ValueError) as told:
        Guard.load(tmp_path)
    assert str(file) in str(told.value) and "restore" in str(told.value) and "\n" not in str(told.value)


def test_no_file_is_no_guard(tmp_path: Path) -> None:
    """A folder without guard.json raises FileNotFoundError: nobody is guarded by accident of a default."""
    with pytest.raises(FileNotFoundError, match="guard"):
        Guard.load(tmp_path)


def test_without_the_classifier_a_deployment_needs_no_torch() -> None:
    """The example of the module's docstring runs on the rules alone with torch and transformers never imported."""
    program = """
import sys
from rewards.guard import Action, Guard, guard_settings
from rollout.types import Speaker, Turn
guard = Guard(guard_settings("en-GB", classifier=False))
def answer(said, policy):
    history = [Turn(Speaker.CLIENT, said)]
    first = guard.before(history)
    if first.action is Action.REPLACE:
        return first.text
    reply = policy(history)
    return first.said(guard.after(history, reply).said(reply))
assert answer("I cannot sleep.", lambda history: "What keeps you up?") == "What keeps you up?"
assert "116 123" in answer("I want to kill myself.", lambda history: 1 / 0)
assert "dramatic" not in answer("I've been cutting myself.", lambda history: "Stop being so dramatic.")
assert not {"torch", "transformers"} & set(sys.modules), "heavy"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
