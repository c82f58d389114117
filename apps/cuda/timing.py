"""Times that can be believed: medians with intervals, a lower bound from physics, and two clocks that must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.cuda.verdict import Timing
from core.errors import ConfigError

BASELINES = ("eager", "compile", "max-autotune")
BELIEVED = 0.9
"""Of the lower bound: the measured rates behind it are not the last word."""


@dataclass(frozen=True)
class TimingOptions:
    """How a GPU is timed.

    Args:
        enabled: measure at all. warmup: launches before, or as many as 100 ms hold. repeats: at least, or as many as
        `seconds` hold. baselines: eager, compile (torch.compile), max-autotune; interleaved with the candidate.
        flush: times the size of the L2 cache that is written between two runs. resamples: of the bootstrap.
    """

    enabled: bool = True
    warmup: int = 10
    repeats: int = 30
    seconds: float = 0.5
    baselines: tuple[str, ...] = ("eager",)
    flush: float = 4.0
    resamples: int = 1000

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(
                    f"unknown baseline '{name}'", where="timing.baselines", hint=f"known: {', '.join(BASELINES)}"
                )
        if self.repeats < 5 or self.warmup < 1 or self.flush < 1:
            raise ConfigError("timing needs repeats ≥ 5, warmup ≥ 1 and flush ≥ 1", where="timing")


def summary(samples: Sequence[float], *, warm: Sequence[float] = (), bound: float = 0.0, resamples: int = 1000,
            seed: int = 12345) -> Timing:  # fmt: skip
    """Median and bootstrap 95 % interval of milliseconds; the first sample is left out."""
    kept = np.asarray(samples[1:] if len(samples) > 1 else samples, np.float64)
    draw = np.random.default_rng(seed)
    medians = np.median(kept[draw.integers(0, len(kept), (resamples, len(kept)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Timing(
        float(np.median(kept)), float(low), float(high), float(np.median(warm)) if len(warm) else 0.0, len(kept), bound
    )


def lower_bound(bytes_in: int, bytes_out: int, flops: float, facts: Mapping[str, Any], dtype: str) -> float:
    """Milliseconds that no kernel can beat: cold inputs over the measured copy bandwidth, FLOP over the matmul rate.

    Outputs that fit may still be in the L2 cache when a kernel ends, so only what does not fit counts. The rate is
    that of the device's fastest way to multiply with at least this type's exponent range.
    """
    moved = bytes_in + max(0, bytes_out - facts["l2_bytes"])
    rate = facts["matmul_flops"].get(dtype, max(facts["matmul_flops"].values()))
    return 1e3 * max(moved / facts["copy_bytes_s"], flops / rate)


def believable(timing: Timing, bound: float, event_ms: float, wall_ms: float) -> tuple[str, str]:
    """("passes", "") or the status and the reason for which a time is not believed.

    Args:
        event_ms, wall_ms: of the same long batch of launches by events and by the clock on the wall.
    """
    if timing.median < BELIEVED * bound:
        return "impossible_time", f"{timing.median:.4f} ms, and this device needs at least {bound:.4f} ms"
    if wall_ms > 0 and event_ms < 0.5 * wall_ms:
        return "suspicious_timing", f"a batch takes {event_ms:.2f} ms by its events and {wall_ms:.2f} ms on the wall"
    return "passes", ""


def faster(new: Timing, old: Timing | None) -> bool:
    """Whether a time is lower by more than the intervals of both."""
    return old is None or new.high < old.low or (new.modelled and new.median < old.median)
