"""Hostile programs get nowhere, leave nothing, and end in time with the right status, on every level claimed.

The programs are in `benchmarks/hostile.py`. The baseline is a bare subprocess: how many of the isolation programs get
out of that, which shows that the programs work. The quick form leaves out the four that run into their time limit.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import hostile
from benchmarks.bar import Bar, Measured, Setting, Unavailable
from core.execution import Sandbox


def measure(setting: Setting) -> Measured:
    """Programs that were not held, over all backends; a strict backend must be among them."""
    probes = Sandbox.probe()
    if not any(p.available for p in probes):
        raise Unavailable("; ".join(f"{p.name}: {p.reason}" for p in probes))
    failures, counts, slowest = {}, {}, 0.0
    with hostile.bait() as host:
        for probe in probes:
            if not probe.available:
                counts[probe.name] = f"unavailable: {probe.reason}"
                continue
            attacks = hostile.claimed(probe.name)
            if setting.quick:
                attacks = [a for a in attacks if a.wall_s > hostile.WALL]
            counts[probe.name] = f"{len(attacks)} programs at level {probe.level}"
            for attack in attacks:
                found = hostile.attack(host, probe.name, attack)
                slowest = max(slowest, found.seconds - attack.wall_s)
                if found.problems:
                    failures[f"{probe.name}: {attack.name}"] = found.problems
        free = _bare(host)
    strict = any(p.available and p.level == "strict" for p in probes)
    return Measured(
        len(failures),
        not failures and strict,
        baseline=f"a bare subprocess lets {free[0]} of {free[1]} programs out",
        details={"backends": counts, "latest end after its limit, s": round(slowest, 3), "failures": failures},
    )


def _bare(host: hostile.Host) -> tuple[int, int]:
    """Programs against files and network that get out of a subprocess without any walls."""
    chosen = [
        a for a in (*hostile.FILES, *hostile.NETWORK) if "host" in a.name and a.name.startswith(("reads", "conn"))
    ]
    out = 0
    for attack in chosen:
        command = [sys.executable, "-I", "-c", host.prelude() + attack.source]
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        out += b"ESCAPED" in done.stdout
    return out, len(chosen)


BAR = Bar("execution.X1", "hostile programs held", "programs not held", "0 on every level claimed", "cpu", 2, measure)
