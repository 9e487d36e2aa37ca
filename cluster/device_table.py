"""Accelerators by name: memory and published rates, for plans made where no such device is at hand. Imports no torch."""

from __future__ import annotations

import re
from typing import NamedTuple

GIB = 2**30


class Accelerator(NamedTuple):
    """One device. Rates are peaks of data sheets; what a job reaches of them is for whoever plans to assume.

    `link` is one direction between two devices of a node, `network` one device's share of the network between nodes.
    """

    name: str
    memory: int  # bytes that a process may use
    flops: float  # bfloat16 with dense matrices, per second
    hbm: float  # bytes per second
    link: float  # bytes per second
    network: float  # bytes per second
    source: str


def _sheet(
    name: str, gib: float, teraflops: float, hbm: float, link: float, network: float, source: str
) -> Accelerator:
    return Accelerator(name, int(gib * GIB), teraflops * 1e12, hbm * 1e9, link * 1e9, network * 1e9, source)


# GiB that CUDA reports as a device's total: less than its name says, since driver and ECC keep some. From memory of such devices,
# and rounded down; not measured here, and drivers differ by some tenths. TFLOP/s; GB/s of memory; GB/s of NVLink (half of the
# published sum of both directions) or PCIe 4.0 x16; GB/s of network: of the maker's own eight-device system (DGX A100: 200 Gb/s a
# device, DGX H100, H200 and B200: 400), else 100 Gb/s assumed.
ACCELERATORS = {
    device.name: device
    for device in (
        _sheet("A100-40GB", 39.3, 312, 1555, 300, 25, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        _sheet("A100-80GB", 79.1, 312, 2039, 300, 25, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        _sheet("H100-80GB", 79.1, 989, 3350, 450, 50, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
        _sheet("H200-141GB", 139.7, 989, 4800, 450, 50, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
        _sheet("B200", 178, 2250, 8000, 900, 50, "NVIDIA HGX B200 data sheet"),
        _sheet("L40S", 44.3, 362, 864, 32, 12.5, "NVIDIA L40S data sheet"),
        _sheet("RTX4090", 23.5, 165, 1008, 32, 12.5, "NVIDIA Ada GPU architecture white paper"),
    )
}
_SLOWEST = ACCELERATORS["L40S"]  # rates of a device that is known by its memory alone


class Cluster(NamedTuple):
    """Alike nodes of alike devices."""

    nodes: int
    per_node: int
    device: Accelerator

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''} of {self.per_node}x{self.device.name}"


def parse_cluster(nodes: int, devices: str) -> Cluster:
    """`devices` of a node, such as "8xH100-80GB", or "8xNAME:80GB" for a device that is not in the table: the GiB that CUDA
    reports of it.

    Raises ValueError, naming the known devices.
    """
    known = ", ".join(ACCELERATORS)
    match = re.fullmatch(r"(?:(\d+)x)?([^:]+?)(?::(\d+(?:\.\d+)?)\s*Gi?B?)?", devices.strip(), re.IGNORECASE)
    if match is None or match[1] == "0":
        raise ValueError(
            f"--devices must be like 8xH100-80GB or 8xNAME:80GB, is {devices!r}; known devices are {known}"
        )
    if nodes < 1:
        raise ValueError(f"--nodes must be at least 1, is {nodes}; raise it")
    count, name, gib = int(match[1] or 1), match[2], match[3]
    found = {key.lower(): device for key, device in ACCELERATORS.items()}.get(name.lower())
    if gib is not None:
        source = f"{found.name if found else _SLOWEST.name}'s rates, with the memory that was given"
        device = (found or _SLOWEST)._replace(name=name, memory=int(float(gib) * GIB), source=source)
    elif found is None:
        raise ValueError(
            f"--devices names the unknown device {name!r}; known are {known}; give another's memory as in 8x{name}:80GB"
        )
    else:
        device = found
    return Cluster(nodes, count, device)
