"""An estimate of a kernel's time from what the emulator counted and ptxas reported: for ranking where no GPU is.

Each launch is bounded by the sectors it moves over the memory's bandwidth, its shared-memory wavefronts over the SMs,
and its warps' issue slots; occupancy decides how much of a bound is reached. The figures are those of one H100 and the
result is marked as modelled: it orders variants of one kernel, and it is never a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps.cuda.plan import Resolved
from apps.cuda.verdict import Timing, Usage


@dataclass(frozen=True)
class DeviceLimits:
    """What an SM of an architecture holds, and the device around it. Bandwidth in bytes a second, clock in hertz."""

    warps: int
    blocks: int
    registers: int
    shared: int
    sms: int = 132
    bandwidth: float = 3.0e12
    clock: float = 1.7e9
    launch_s: float = 2.5e-6


LIMITS = {
    "sm_75": DeviceLimits(32, 16, 65536, 65536, 40, 3.2e11, 1.5e9),
    "sm_80": DeviceLimits(64, 32, 65536, 167936, 108, 1.5e12, 1.4e9),
    "sm_86": DeviceLimits(48, 16, 65536, 102400, 84, 9.0e11, 1.7e9),
    "sm_89": DeviceLimits(48, 24, 65536, 102400, 128, 1.0e12, 2.4e9),
    "sm_90": DeviceLimits(64, 32, 65536, 233472),
}  # fmt: skip


@dataclass(frozen=True)
class Occupancy:
    """Share of an SM's warps that can be resident, blocks of an SM, and what limits them."""

    share: float
    blocks: int
    limit: str


def occupancy(threads: int, registers: int, shared: int, arch: str = "sm_90") -> Occupancy:
    """What fits on an SM, by warps, registers (allocated 256 a warp) and shared memory (1 KiB of it for the system).

    Args:
        threads: of a block. registers: of a thread. shared: bytes of a block, static and dynamic.
    """
    limits = LIMITS.get(arch.rstrip("a"), LIMITS["sm_90"])
    warps = -(-threads // 32)
    a_warp = -(-max(registers, 1) * 32 // 256) * 256
    fits = {
        "warps": limits.warps // warps,
        "registers": limits.registers // (a_warp * warps),
        "shared memory": limits.shared // (-(-shared // 128) * 128 + 1024),
        "blocks": limits.blocks,
    }
    limit = min(fits, key=lambda name: fits[name])
    return Occupancy(min(1.0, fits[limit] * warps / limits.warps), fits[limit], limit)


def modelled(
    counts: Mapping[str, int], usage: Sequence[Usage], resolved: Resolved, archs: Sequence[str] = ("sm_90",)
) -> Timing:
    """Milliseconds estimated for the counted launches together."""
    arch = archs[0] if archs else "sm_90"
    limits = LIMITS.get(arch.rstrip("a"), LIMITS["sm_90"])
    taken = {u.kernel: u for u in usage if u.arch == arch}
    shares, blocks = [], 0
    for launch in resolved.launches:
        used = taken.get(launch.kernel)
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        shared = launch.shared + (used.shared if used else 0)
        shares.append(occupancy(threads, used.registers if used else 32, shared, arch).share)
        blocks += launch.grid[0] * launch.grid[1] * launch.grid[2]
    share = sum(shares) / len(shares) if shares else 1.0
    reached = min(1.0, 0.35 + 1.3 * share)  # half the warps already hide most of the memory's latency
    filled = min(1.0, blocks / limits.sms)
    spills = sum(u.spills for u in taken.values()) * counts.get("threads", 0)
    memory = (counts.get("sectors", 0) * 32 + spills) / (limits.bandwidth * reached * max(filled, 1 / limits.sms))
    instructions = (
        counts.get("requests", 0) * 4 + counts.get("shared_requests", 0) * 2 + counts.get("threads", 0) / 32 * 12
    )
    issue = (instructions + counts.get("wavefronts", 0) * 2) / (
        4 * limits.sms * max(filled, 1 / limits.sms) * limits.clock
    )
    waits = counts.get("barriers", 0) / 32 * 30 / (4 * limits.sms * limits.clock * max(filled, 1 / limits.sms))
    atomics = counts.get("atomics", 0) * 2e-9 / max(1.0, limits.sms * filled / 8)
    seconds = limits.launch_s * len(resolved.launches) + max(memory, issue) + 0.3 * min(memory, issue) + waits + atomics
    return Timing(seconds * 1e3, seconds * 1e3, seconds * 1e3, modelled=True)
