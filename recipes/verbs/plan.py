"""`graft plan`: what a run would do, printed before it does anything."""

from __future__ import annotations

import argparse
import json

from recipes.catalogue import find

EXAMPLES = """  graft plan recipes/translation/quickstart.yaml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key.path=value")


def run(options: argparse.Namespace) -> int:
    from core.training.run import plan

    from core.config.load import load_recipe

    print(json.dumps(plan(load_recipe(find(options.recipe), options.overrides)), indent=2, ensure_ascii=False))
    return 0
