"""`graft merge`: a run's adapters folded into its base, as a folder that any runtime loads."""

from __future__ import annotations

import argparse

from recipes.verbs import share

EXAMPLES = """  graft merge runs/quickstart/42
  graft merge runs/quickstart/42 --out merged --dtype bf16
  graft merge runs/qlora/42 --mode requantize --max-drift 0.05"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder or adapter folder")
    parser.add_argument("--out", help="default: merged/ in the run folder")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument(
        "--mode",
        default="dense",
        choices=["separate", "dense", "requantize"],
        help="separate: base and adapter side by side, exact; dense: added to the (dequantized) weights;"
        " requantize: then held in the base's number format again",
    )
    parser.add_argument("--max-drift", type=share, help="largest mean change of a logit; above it nothing is written")


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import RunFolder
    from core.training.merge import merge

    out = options.out or RunFolder.open(options.run).merged_dir
    merge(options.run, out, options.dtype, mode=options.mode, max_drift=options.max_drift)
    return 0
