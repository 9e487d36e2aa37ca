"""Settings of the rating service."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from typing import Literal, get_args

FOLDER = "experts"  # of a run directory: where its service keeps what it knows
Aggregation = Literal["random_effects", "standardised", "mean"]


def _require(holds: bool, knob: str, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"rewards.experts.service.{knob} must be {rule}, got {value!r}: {remedy}")


@dataclass(frozen=True)
class ServiceConfig:
    """Where the service listens, how it deals out replies, and how much it lets anybody ask."""

    host: str = "127.0.0.1"
    """Address to listen on. The service speaks plain HTTP: beyond this machine put a proxy with TLS in front."""
    port: int = 0
    """0 takes the port that the folder had before, else any that is free."""
    public_url: str = ""
    """Address that raters' links begin with, where a proxy stands in front; "" is http://HOST:PORT."""
    lease_s: float = 900.0
    """How long a reply is kept for a rater after the last sign of work; then it goes to somebody else."""
    sitting: int = 25
    """Ratings until a break is due."""
    overlap: float = 0.1
    """Share of replies that up to `overlap_raters` raters judge, whatever was asked: agreement is measured on them."""
    overlap_raters: int = 3
    """Raters of a reply of the overlap set."""
    repeats: float = 0.07
    """Share of replies that a rater is given, unannounced, for the second time: consistency is measured on them."""
    repeat_gap: int = 10
    """Ratings that lie at least between a reply and its repetition."""
    aggregation: Aggregation = "random_effects"
    """How ratings become a reward: with who rated modelled and few ratings shrunk, with raters brought to one mean and
    spread, or by the plain mean."""
    rate_per_s: float = 10.0
    """Requests a second that one rater's or admin's token may make for long; the training job's is not limited."""
    burst: int = 60
    """Requests that one token may make at once."""
    anonymous_per_s: float = 20.0
    """Requests a second without a valid token (pages among them) that one address may make for long."""
    anonymous_burst: int = 200
    """Such requests that one address may make at once."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def __post_init__(self) -> None:
        _require(bool(self.host), "host", "an address", self.host, "use 127.0.0.1")
        _require(0 <= self.port <= 65535, "port", "in 0..65535", self.port, "0 takes any that is free")
        sound = not self.public_url or self.public_url.startswith(("http://", "https://"))
        _require(sound, "public_url", "an http(s) address", self.public_url, 'use "" for http://HOST:PORT')
        _require(1 <= self.lease_s < math.inf, "lease_s", ">= 1 s, finite", self.lease_s, "900 is a quarter of an hour")
        _require(self.sitting >= 1, "sitting", ">= 1", self.sitting, "25 is what people do with care")
        _require(0 <= self.overlap <= 1, "overlap", "in [0, 1]", self.overlap, "0.1 is usual; 0 for none")
        _require(self.overlap_raters >= 1, "overlap_raters", ">= 1", self.overlap_raters, "3 is usual")
        _require(0 <= self.repeats <= 0.5, "repeats", "in [0, 0.5]", self.repeats, "0.05 to 0.1 is usual; 0 for none")
        _require(self.repeat_gap >= 1, "repeat_gap", ">= 1", self.repeat_gap, "10 is enough to forget")
        known = self.aggregation in get_args(Aggregation)
        _require(
            known,
            "aggregation",
            f"one of {', '.join(get_args(Aggregation))}",
            self.aggregation,
            "random_effects is usual",
        )
        for knob, rate in (("rate_per_s", self.rate_per_s), ("anonymous_per_s", self.anonymous_per_s)):
            _require(0 < rate < math.inf, knob, "above 0 a second, finite", rate, "10 is more than a fast human needs")
        for knob, burst in (("burst", self.burst), ("anonymous_burst", self.anonymous_burst)):
            _require(burst >= 1, knob, ">= 1", burst, "60 lets a page load at once")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
