"""`graft report`: one HTML page that tells a run."""

from __future__ import annotations

import argparse

EXAMPLES = """  graft report runs/quickstart/42"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import RunFolder
    from core.evaluation.page import write_report_page

    print(f"report: {write_report_page(RunFolder.open(options.run))}")
    return 0
