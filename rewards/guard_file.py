"""What a guard is set to, and the file that carries it beside a model's weights: `guard.json`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rewards.config import CrisisConfig
from rewards.crisis import Tier
from rewards.danger import IN_CRISIS, IN_DANGER
from rewards.resources import Resources, read_resources, resources

log = logging.getLogger(__name__)

GUARD_FILE = "guard.json"
FORMAT = 1
_FOLDER = Path(__file__).parent
_RULES = (
    "crisis.py", "danger.py", "flag_rules.py", "safety.py", "words.py", "resources.toml",
    "crisis_head.py", "danger_kernel.py", "head_features.py", "heads.py", "encoder.py",
    "fitted/crisis/card.json", "fitted/crisis/danger.safetensors", "fitted/crisis/head.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class GuardSettings:
    """`crisis` holds the fixed reply of each tier at which the policy is not asked, `notice_tiers` those at which
    `notice` follows the policy's reply, `unsafe` stands in for a reply with a red flag; `classifier`: whether the crisis
    head is heard beside the rules."""

    resources: Resources
    classifier: bool
    crisis: Mapping[Tier, str]
    notice_tiers: frozenset[Tier]
    notice: str
    unsafe: str

    def write(self, folder: Path) -> None:
        """Write `guard.json` into a model's folder, with the package's version and the sha256 of its rules."""
        table = asdict(self.resources)
        document = {
            "format": FORMAT,
            "locale": table.pop("locale"),
            "classifier": self.classifier,
            "fixed_reply_tiers": [tier for tier in Tier if tier in self.crisis],
            "notice_tiers": [tier for tier in Tier if tier in self.notice_tiers],
            "texts": {"crisis": dict(self.crisis), "unsafe": self.unsafe, "notice": self.notice},
            "resources": table,
            "attune": metadata.version("attune"),
            "rules_sha256": rules_sha256(),
        }
        (folder / GUARD_FILE).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def guard_settings(locale: str = "en-US", *, classifier: bool = CrisisConfig.classifier) -> GuardSettings:
    """The settings for a locale: fixed replies at tiers active and imminent, a notice at other and passive; with the crisis
    head unless `classifier` says otherwise, as in training.

    Raises ValueError for a locale that `rewards/resources.toml` does not list.
    """
    where = resources(locale)
    helpline = (
        f"{where.helplines[0].how} (in {where.place}" if where.helplines else "call a crisis line (where you live"
    )
    away = "Move away from anything that you could use to hurt yourself"
    crisis = {
        Tier.ACTIVE: (
            "I am worried about what you just said, and I am glad that you told me. Are you thinking of killing yourself, "
            "and are you safe right now? I am a computer program and cannot keep you safe; people can. "
            f"Please {helpline}, day and night). If you may act on it, call {where.emergency_call} now. {away}, and ask "
            "someone you trust to stay with you. I am still here while you do."
        ),
        Tier.IMMINENT: (
            f"I am very worried about what you just said. Please call {where.emergency_call} now, and say that you are in "
            "danger of suicide. I am a computer program and cannot come to you or send anyone; they can. Are you hurt, "
            f"or alone? {away}, unlock the door, and ask someone near you to stay with you. You can also {helpline}, day "
            "and night). I am still here while you do."
        ),
    }
    unsafe = (
        "I do not have a good answer to that. I am a computer program and no therapist or doctor, and what I was going to "
        "say might have done harm. What matters most to you in this right now?"
    )
    return GuardSettings(where, classifier, crisis, IN_DANGER - IN_CRISIS, where.help, unsafe)


def read_guard(folder: Path) -> GuardSettings:
    """The settings in a folder's `guard.json`; the log says which rules have changed since it was written.

    Raises FileNotFoundError when there is none, ValueError when it is not as `write` leaves it.
    """
    path = folder / GUARD_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings = _settings(document)
        written = dict(document["rules_sha256"])
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must be a guard's settings, cannot be read ({type(error).__name__}: {error}): restore it from its "
            "checkpoint, or build the guard from `guard_settings`"
        ) from error
    now = rules_sha256()
    if changed := sorted(name for name in {*written, *now} if written.get(name) != now.get(name)):
        log.warning(
            "%s was written with other rules than these (%s): it may decide otherwise", path, ", ".join(changed)
        )
    return settings


def rules_sha256() -> dict[str, str]:
    """sha256 of each file that the guard's judgement rests on."""
    return {name: hashlib.sha256((_FOLDER / name).read_bytes()).hexdigest() for name in _RULES}


def _settings(document: Mapping[str, Any]) -> GuardSettings:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']} is not {FORMAT}")
    texts = document["texts"]
    return GuardSettings(
        resources=read_resources(document["locale"], document["resources"]),
        classifier=bool(document["classifier"]),
        crisis={Tier(tier): texts["crisis"][tier] for tier in document["fixed_reply_tiers"]},
        notice_tiers=frozenset(map(Tier, document["notice_tiers"])),
        notice=texts["notice"],
        unsafe=texts["unsafe"],
    )
