"""The command line: `graft VERB …`.

It knows the verbs by name and imports one only when it is called, so that `graft --help` answers at once. A
`GraftError` is printed as it is and ends with status 2; Ctrl-C ends with 130; anything else is our bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

VERBS = {
    "ls": "recipes, presets, readers, methods and runs",
    "copy": "copy a shipped recipe to edit it",
    "check": "check a recipe and the first rows of its data, without weights",
    "plan": "memory and time of a run from its recipe alone, and what would fit",
    "train": "run a recipe",
    "eval": "score a run, a model or a file of predictions",
    "compress": "bring a run or a model into fewer bits",
    "merge": "fold a run's adapters into its base",
    "export": "a run's adapter as other runtimes read it",
    "chat": "talk to a run or a model in the terminal",
    "l2mac": "carry out a long task file by file in a short context, every step checked",
    "demo": "open an app's demo",
    "report": "write a run's one-page report",
    "runs": "list, follow, stop or resume the runs here",
    "doctor": "versions, devices and tools of this machine",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the process's exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"graft {version('graft')}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        from core.errors import nearest

        print(f"graft: unknown verb '{verb}' {nearest(verb, VERBS)}\n\n{_overview()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"recipes.verbs.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"graft {verb}",
        description=VERBS[verb],
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    from core.errors import GraftError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _quiet()
    try:
        return module.run(parser.parse_intermixed_args(argv[1:])) or 0
    except GraftError as error:
        print(f"\ngraft {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ngraft {verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _quiet() -> None:
    """Other libraries' bars and notices would bury ours."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "usage: graft VERB …",
            "",
            *lines,
            "",
            "graft VERB --help shows its options and examples; start with",
            "  graft train recipes/translation/quickstart.yaml",
        ]
    )
