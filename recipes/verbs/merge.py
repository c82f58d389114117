"""`graft merge`: a run's adapters folded into its base, as a folder that any runtime loads."""

from __future__ import annotations

import argparse

EXAMPLES = """  graft merge runs/quickstart/42
  graft merge runs/quickstart/42 --out merged --dtype bf16"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder or adapter folder")
    parser.add_argument("--out", help="default: merged/ in the run folder")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"])


def run(options: argparse.Namespace) -> int:
    from core.training.merge import merge

    from core.config.run_folder import RunFolder

    out = options.out or RunFolder.open(options.run).merged_dir
    merge(options.run, out, options.dtype)
    return 0
