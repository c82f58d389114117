"""`graft demo`: an app's Gradio page, on a run or on the shipped model."""

from __future__ import annotations

import argparse

EXAMPLES = """  graft demo translation
  graft demo translation --run runs/quickstart/42 --port 7861"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app")
    parser.add_argument(
        "--run", help="run folder or model folder; default: the newest finished run, else the shipped model"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1")


def run(options: argparse.Namespace) -> int:
    from demos import launch

    launch(options.app, run=options.run, host=options.host, port=options.port)
    return 0
