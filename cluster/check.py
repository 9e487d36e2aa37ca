"""Preflight of what any job needs: the cluster, its nodes and its room, disk, shared memory.

Each function looks at one thing and says what it found; none raises for what it finds missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.findings import Finding, installed, missing, ok, size, warn
from cluster.placement import Claim, ClusterTooSmall, bundles, connect, require_room

SMALL_SHARED_MEMORY = 256 * 2**20  # a container's default is 64 MiB
TOKEN_HINT = (
    "where Ray asks for a token, run `ray get-auth-token --generate` once, have the same ~/.ray/auth_token here and on "
    "the nodes, and set RAY_AUTH_MODE=token"
)
_SECONDS_TO_ANSWER = 3.0
_SECONDS_TO_LOOK = 60.0  # a node may have to start a worker first


@contextmanager
def joined() -> Iterator[Finding]:
    """The cluster that a run would use, joined (or started: a private one) as a run does, and left on exit."""
    was_joined = ray.is_initialized()
    try:
        yield _join(os.environ.get("RAY_ADDRESS", "local"))
    finally:
        if not was_joined:
            ray.shutdown()


def _join(address: str) -> Finding:
    if address.startswith("http"):
        remedy = f"submit this command with `ray job submit`, or give the address of the GCS (HEAD:6379); {TOKEN_HINT}"
        return missing("cluster", f"RAY_ADDRESS={address} is a dashboard", remedy)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
        except OSError as error:
            remedy = "start it (`ray start --head`), correct RAY_ADDRESS, or unset it for a private cluster here"
            return missing("cluster", f"RAY_ADDRESS={address} does not answer ({error})", remedy)
    try:
        connect()
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        return missing("cluster", f"RAY_ADDRESS={address} cannot be joined ({error})", TOKEN_HINT)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus, memory = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU", "memory"))
    where = "a private one on this machine" if address == "local" else f"RAY_ADDRESS={address}"
    return ok("cluster", f"{where}: {len(nodes)} node(s), {cpus:g} CPU, {gpus:g} GPU, {size(memory)} of memory")


def room(claims: Sequence[Claim]) -> Finding:
    """Whether the joined cluster can hold `claims`, and whether it can now."""
    try:
        require_room(claims)
    except ClusterTooSmall as error:
        return missing("room", str(error))
    wanted, free = bundles(claims), ray.available_resources()
    total = {kind: sum(bundle.get(kind, 0) for bundle in wanted) for kind in ("CPU", "GPU")}
    text = f"{sum(claim.count for claim in claims)} actors take {total['CPU']:g} CPU and {total['GPU']:g} GPU"
    if busy := [kind for kind, amount in total.items() if amount > free.get(kind, 0) + 1e-6]:
        return warn("room", f"{text}; other jobs hold too much {' and '.join(busy)} now", "wait for them to end")
    return ok("room", text)


@dataclass(frozen=True)
class NodeReport:
    """One node: versions by package, bytes of memory of each of its GPUs, and which of the paths asked for it sees."""

    host: str
    packages: Mapping[str, str | None]
    gpu_bytes: tuple[int, ...]
    sees: Mapping[str, bool]


def look(names: Sequence[str], paths: Mapping[str, str]) -> NodeReport:
    """The report of the node that runs this; `paths` are paths by what they are to people."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False).stdout.split()
    except (FileNotFoundError, subprocess.TimeoutExpired):
        lines = []
    gpu_bytes = tuple(int(line) * 2**20 for line in lines if line.isdigit())
    seen = {what: Path(path).exists() for what, path in paths.items()}
    return NodeReport(platform.node(), {name: installed(name) for name in names}, gpu_bytes, seen)


def nodes(
    names: Sequence[str], paths: Mapping[str, str], *, on_gpu: bool
) -> Generator[Finding, None, list[NodeReport]]:
    """Look at every node of the joined cluster; returns their reports, none when one could not be had."""
    task = ray.remote(num_cpus=0)(look)
    at = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    asked = [task.options(scheduling_strategy=strategy).remote(names, paths) for strategy in at]
    try:
        reports = ray.get(asked, timeout=_SECONDS_TO_LOOK)
    except RayError as error:
        yield missing("nodes", f"a node cannot run this code ({error})", "submit with `ray job submit --working-dir .`")
        return []
    yield from differences(reports, on_gpu=on_gpu)
    return reports


def differences(reports: Sequence[NodeReport], *, on_gpu: bool) -> Iterator[Finding]:
    """What a run would stumble over: other versions than this process's, CPU builds beside GPUs, paths not seen."""
    for report in reports:
        for name, there in report.packages.items():
            if there != (here := installed(name)):
                value = f"{report.host} has {name} {there or 'not installed'}, this process {here or 'not installed'}"
                yield missing("nodes", value, "install one version on every node")
        torch = report.packages.get("torch")
        if on_gpu and report.gpu_bytes and torch and torch.endswith("+cpu"):
            yield missing("nodes", f"{report.host} has GPUs and torch {torch}", "install torch's CUDA build there")
        for what in (what for what, is_seen in report.sees.items() if not is_seen):
            yield missing("nodes", f"{report.host} does not see {what}", "use storage that every node mounts")
    gpus = [size(count) for report in reports for count in report.gpu_bytes]
    hosts = ", ".join(report.host for report in reports)
    yield ok("nodes", f"{hosts}: {len(gpus)} GPU(s) {', '.join(sorted(set(gpus)))}".rstrip())


def cluster_memory() -> int:
    """Bytes of memory that Ray found free on the nodes of the joined cluster when they started."""
    return int(ray.cluster_resources().get("memory", 0))


def disk(folder: Path, needed: int) -> Finding:
    """Whether the disk that `folder` is or will be on has `needed` bytes free."""
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        return missing("disk", f"{size(free)} free, checkpoints take about {size(needed)}", "choose another --runs")
    return ok("disk", f"{size(free)} free, checkpoints take about {size(needed)}")


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def shared_memory(needed: int) -> Iterator[Finding]:
    """Whether this machine has `needed` bytes for anonymous shared memory (memfd), and a /dev/shm worth the name."""
    try:
        os.close(os.memfd_create("attune-check"))
    except (AttributeError, OSError) as error:
        yield missing("shared memory", f"memfd_create fails ({error})", "use Linux 3.17 or later, and allow the call")
        return
    available = _available_memory()
    if available < needed:
        remedy = "end other programs, or use a smaller model"
        yield missing("shared memory", f"{size(available)} available, a publish takes {size(needed)}", remedy)
    else:
        yield ok("shared memory", f"{size(available)} available, a publish takes {size(needed)} (memfd)")
    free = shutil.disk_usage("/dev/shm").free
    if free < SMALL_SHARED_MEMORY:
        remedy = "Ray and vLLM exchange data there: start the container with --shm-size=2g or more"
        yield warn("/dev/shm", f"{size(free)} free", remedy)


def _available_memory() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
