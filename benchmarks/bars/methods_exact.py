"""Everything about the methods that has an exact answer, in one run."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from benchmarks import method_checks
from benchmarks.bar import Bar, Measured, Setting


def measure(setting: Setting) -> Measured:
    """Share of the statements that hold, in percent."""
    found: dict[str, dict[str, Any]] = {}
    for module in pkgutil.iter_modules(method_checks.__path__):
        checks = getattr(importlib.import_module(f"benchmarks.method_checks.{module.name}"), "CHECKS", {})
        for name, check in checks.items():
            off, allowed = check()
            found[f"{module.name}: {name}"] = {"off": off, "allowed": allowed, "holds": off <= allowed}
    wrong = {name: row for name, row in found.items() if not row["holds"]}
    return Measured(
        100 * (len(found) - len(wrong)) / len(found),
        not wrong,
        details={"statements": len(found), "broken": wrong, "found": {n: row["off"] for n, row in found.items()}},
    )


BAR = Bar(
    "methods.exact",
    "adapters, sparse tuning, control blocks, surgery: all exact statements",
    "% hold",
    "100 %",
    "cpu",
    1,
    measure,
)
