"""How the tests share two cores."""

from __future__ import annotations

import os

import pytest

# One thread to a process: two test processes, each with threads that wait for one another at every matrix product, take
# several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that short ones fill up the processes' ends (with `--no-loadscope-reorder`)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
