"""`graft compress`: a run or a recipe's model in fewer bits, with what the task lost."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """  graft compress runs/quickstart/42 --quantization rtn:4
  graft compress runs/quickstart/42 --quantization awq:int4:g128 --out small
  graft compress recipes/translation/quickstart.yaml model.path=/models/base --quantization gptq:3"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="run folder, or a recipe with a model path")
    parser.add_argument("overrides", nargs="*", help="key.path=value, with a recipe")
    parser.add_argument(
        "--quantization", required=True, metavar="PRESET", help="e.g. awq:int4:g128 (docs/quantization)"
    )
    parser.add_argument("--out", help="default: compressed/PRESET in the run folder, else compressed-PRESET here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=128, help="calibration sequences")
    parser.add_argument("--length", type=int, help="tokens of a calibration sequence (512, or the model's context)")
    parser.add_argument("--no-eval", action="store_true", help="do not score before and after")
    parser.add_argument("--with", dest="options", nargs="*", default=[], metavar="K=V", help="settings of the search")


def run(options: argparse.Namespace) -> int:
    import yaml

    from core.config.load import load_recipe
    from core.config.run_folder import RunFolder
    from core.errors import ConfigError
    from core.training.compress import compress, is_run
    from recipes.catalogue import find

    name = options.quantization.replace(":", "-")
    search = {k: yaml.safe_load(v) for k, v in (pair.partition("=")[::2] for pair in options.options)}
    if is_run(options.source):
        source, out = options.source, RunFolder.open(options.source).path / "compressed" / name
    elif (Path(options.source) / "config.json").is_file():
        raise ConfigError(
            "a model folder says nothing of its task",
            where=options.source,
            hint="give a recipe of the task, and model.path=THIS_FOLDER",
        )
    else:
        source, out = load_recipe(find(options.source), options.overrides), f"compressed-{name}"
    compress(
        source,
        options.quantization,
        options.out or out,
        device=options.device,
        rows=options.rows,
        length=options.length,
        evaluate=not options.no_eval,
        options=search,
    )
    return 0
