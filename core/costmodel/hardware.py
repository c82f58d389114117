"""Devices as numbers: memory, matrix rates, bandwidth.

Rates are the dense peaks that makers publish; `reached` is the share of them that large products reach in practice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from core.errors import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device.

    Args:
        memory: bytes. bf16, fp32: operations a second of matrix products. bandwidth: bytes a second.
        reached: share of the matrix rate that large products reach. half_rate: operations of a product at which it
            reaches half of that. launch: seconds that a kernel costs at least.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    reached: float = 0.7
    launch: float = 4e-6
    half_rate: float = 2e9

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


DEVICES = {
    device.name: device
    for device in (
        Device("h200", 139.8 * GIB, 989e12, 67e12, 4.8e12),
        Device("h100", 79.1 * GIB, 989e12, 67e12, 3.35e12, 0.66),
        Device("a100-80", 79.1 * GIB, 312e12, 19.5e12, 2.0e12),
        Device("a100-40", 39.4 * GIB, 312e12, 19.5e12, 1.55e12),
        Device("l40s", 44.5 * GIB, 362e12, 91e12, 0.86e12),
        Device("a10", 22.5 * GIB, 125e12, 31e12, 0.6e12),
        Device("rtx4090", 23.6 * GIB, 165e12, 82e12, 1.0e12),
        Device("rtx3090", 23.6 * GIB, 71e12, 35e12, 0.94e12),
        Device("t4", 14.6 * GIB, 65e12, 8.1e12, 0.32e12),
    )
}


def device_named(name: str) -> Device:
    """The device of that name, or the machine's own for "cpu". Raises `ConfigError` with the nearest name."""
    if name == "cpu":
        return this_cpu()
    key = name.lower().replace(" ", "")
    if key not in DEVICES:
        hint = " ".join(filter(None, [nearest(key, DEVICES), f"known: cpu, {', '.join(DEVICES)}"]))
        raise ConfigError(f"unknown device '{name}'", where="--device", hint=hint)
    return DEVICES[key]


def known_as(product: str) -> str | None:
    """The name here of what a driver calls its product, e.g. "NVIDIA H100 80GB HBM3"; None for others."""
    text = product.lower().replace("-", " ")
    for name in sorted(DEVICES, key=len, reverse=True):
        parts = name.replace("rtx", "rtx ").split("-")
        if all(part in text for part in parts):
            return name
    return None


def this_cpu() -> Device:
    """The machine's own processor: its memory, and a rate by cores that a single measurement could not improve much."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", float(memory), cores * 60e9, cores * 60e9, 15e9 * min(cores, 8), 0.6, 1e-5, 1e7)
