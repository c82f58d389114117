"""`graft train`: a recipe in, a run folder out."""

from __future__ import annotations

import argparse
import shutil
import sys

from recipes.catalogue import find

EXAMPLES = """  graft train recipes/translation/quickstart.yaml
  graft train recipes/translation/alma.yaml model.path=/models/base train.lr=1e-4 --gpus 2
  graft train recipes/translation/alma.yaml --smoke
  graft train --resume runs/alma/42"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--gpus", type=int, default=None, help="data-parallel over this many GPUs")
    parser.add_argument("--resume", metavar="RUN", help="go on with a killed or stopped run")
    parser.add_argument("--smoke", action="store_true", help="tiny model, 64 rows: seconds on a laptop")
    parser.add_argument("--force", action="store_true", help="replace the run that is in the output folder")


def run(options: argparse.Namespace) -> int:
    from core.config.load import load_recipe, smoke
    from core.config.run_folder import RunFolder
    from core.errors import ConfigError

    if options.gpus is not None and options.gpus > 1:
        from core.distributed.launch import relaunch, world_size

        if world_size() == 1:
            return relaunch(sys.argv[1:], options.gpus)
    if options.resume:
        if options.recipe:
            raise ConfigError("--resume takes the recipe from the run; give no other", where=options.recipe)
        folder = RunFolder.open(options.resume)
        recipe, resume = folder.recipe(), True
    else:
        if not options.recipe:
            raise ConfigError(
                "no recipe given", hint="graft ls shows the recipes that ship; --resume RUN goes on with a run"
            )
        recipe, resume = load_recipe(find(options.recipe), options.overrides), False
        if options.smoke:
            recipe = smoke(recipe)
        folder = _create(recipe, options)
    from core.training.run import train

    try:
        train(recipe, folder, resume=resume)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            folder.set_status("failed", error=f"{type(error).__name__}: {error}")
        raise
    if folder.info().get("status") == "stopped":
        print(f"\nstopped; go on with: graft train --resume {folder.path}")
        return 130
    place = folder.path
    print(f"\nrun folder: {place}")
    print(f"next: graft demo {recipe.app} --run {place}   graft report {place}   graft merge {place}")
    return 0


def _create(recipe, options):
    """A fresh run folder, made by the first process and opened by the others."""
    import os
    from pathlib import Path

    from core.config.run_folder import RunFolder

    name = Path(recipe.source.file).stem
    place = Path(recipe.output.format(recipe=name, seed=recipe.seed, app=recipe.app))
    if int(os.environ.get("RANK", "0")) != 0:
        return RunFolder(place)
    if (options.force or options.smoke) and (place / "run.json").is_file():
        shutil.rmtree(place)
    return RunFolder.create(recipe, ["graft", *sys.argv[1:]])
