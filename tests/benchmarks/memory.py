"""Memory of a job on one machine: PSS summed over the driver and every process below it, at the peak."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process and its proportional share (PSS) of the memory that it maps, in bytes."""

    parent: int
    name: str
    pss: int


class MemoryPeak:
    """This process and its descendants at the moment, looked for every second, when they held the most memory."""

    def __init__(self) -> None:
        self.family: dict[int, Process] = {}
        self.cpu_share = 0.0  # of one core, taken by the looking

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        started = time.perf_counter()
        while not done.wait(1.0):
            self.family = max(self.family, family(os.getpid()), key=lambda now: sum(p.pss for p in now.values()))
            self.cpu_share = time.thread_time() / (time.perf_counter() - started)

    def by_kind(self, fleets: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
        """(processes, bytes) by fleet and, of what fleets and driver started, by name; the largest first."""
        fleet_of = {pid: fleet for fleet, pids in fleets.items() for pid in pids}
        kinds: dict[str, tuple[int, int]] = {}
        for pid, process in self.family.items():
            above = pid
            while above not in fleet_of:
                above = self.family[above].parent
            owner = "Ray" if fleet_of[above] == "driver" else fleet_of[above]
            kind = fleet_of[pid] if above == pid else f"{owner}: {process.name}"
            count, pss = kinds.get(kind, (0, 0))
            kinds[kind] = count + 1, pss + process.pss
        return dict(sorted(kinds.items(), key=lambda item: -item[1][1]))


def family(root: int) -> dict[int, Process]:
    """`root` and its descendants by process id; those that end meanwhile are left out."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found, waiting = dict[int, Process](), [(root, 0)]
    while waiting:
        pid, parent = waiting.pop()
        if pss := re.search(r"^Pss:\s+(\d+) kB", _read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE):
            words = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").split() or [""]
            name = Path(words[0]).name
            if name.startswith("python"):
                name = next((Path(word).name for word in words if word.endswith(".py")), name)
            found[pid] = Process(parent, name.removeprefix("ray::"), int(pss[1]) * 1024)
            waiting += [(child, pid) for child in children[pid]]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
