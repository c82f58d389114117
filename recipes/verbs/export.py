"""`graft export`: a run's adapter as other runtimes read it, its scale folded in."""

from __future__ import annotations

import argparse

EXAMPLES = """  graft export runs/quickstart/42
  graft export runs/quickstart/42 --out adapters/quickstart"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder or adapter folder")
    parser.add_argument("--out", help="default: exported/ in the run folder")


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import RunFolder
    from core.training.export import export_adapter

    out = options.out or RunFolder.open(options.run).path / "exported"
    drift = export_adapter(options.run, out)
    print(f"exported: {out} (plain LoRA, alpha = r)")
    print(f"logit drift through peft: max {drift['max']:.1e} mean {drift['mean']:.1e}")
    return 0
