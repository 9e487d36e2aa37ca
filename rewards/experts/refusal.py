"""What the service will not do, as one line for people and an HTTP status for programs."""

from __future__ import annotations


class Refused(ValueError):
    """A request that is refused; nothing was stored.

    `status` is the HTTP status: 400 malformed, 401 nobody, 403 not this one, 404 unknown, 409 too late or taken, 413 too
    large, 422 out of range, 429 too often, 503 cannot be stored now, 507 no room. `wait_s` says when to come again.
    """

    def __init__(self, status: int, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.wait_s = status, wait_s
