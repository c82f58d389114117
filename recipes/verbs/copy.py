"""`graft copy`: a shipped recipe as a file of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.config.files import write_text
from core.errors import GraftError
from recipes.catalogue import find

EXAMPLES = """  graft copy translation/alma
  graft copy translation/alma mine.yaml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name or path")
    parser.add_argument("to", nargs="?", help="file to write; default: the recipe's own name, here")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def run(options: argparse.Namespace) -> int:
    source = find(options.recipe)
    target = Path(options.to or source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not options.force:
        raise GraftError("the file exists", where=str(target), hint="name another file, or --force")
    write_text(target, source.read_text(encoding="utf-8"))
    print(f"{target}\nnext: graft check {target}")
    return 0
