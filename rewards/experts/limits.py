"""How often, and how much: token buckets, and bodies of bounded size."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import Request

from rewards.experts.refusal import Refused

_KEPT = 10_000  # buckets; above it those that are full again are forgotten


class Buckets:
    """A bucket per key: it holds `burst` requests and fills at `rate_per_s`. Not thread-safe."""

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate_per_s, float(burst), clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> None:
        """One request. Raises `Refused` (429) with the seconds to wait where the bucket is empty."""
        now = self._clock()
        level = self._level(key, now)
        if level < 1:
            wait_s = (1 - level) / self._rate
            raise Refused(429, f"too many requests: wait {wait_s:.1f} s, then go on", wait_s)
        if len(self._levels) >= _KEPT:
            self._levels = {k: v for k, v in self._levels.items() if self._level(k, now) < self._burst}
        self._levels[key] = (level - 1, now)

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)


async def read(request: Request, most: int) -> bytes:
    """The body. Raises `Refused` (413) as soon as it is known to be above `most` bytes, whatever its header says."""
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated[:20]) > most:
        raise _too_large(most)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body must be at most {most // 1024} kB, is larger: send less at a time")
