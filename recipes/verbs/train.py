"""`graft train`: a recipe in, a run folder out."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys

from recipes.catalogue import find
from recipes.verbs import count

EXAMPLES = """  graft train recipes/translation/quickstart.yaml
  graft train recipes/translation/alma.yaml model.path=/models/base train.lr=1e-4 --gpus 2
  graft train recipes/translation/alma.yaml --smoke
  graft train --resume runs/alma/42
  graft train mine.yaml --detach"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--gpus", type=count, default=None, help="data-parallel over this many GPUs")
    parser.add_argument("--resume", metavar="RUN", help="go on with a killed or stopped run")
    parser.add_argument("--smoke", action="store_true", help="tiny model, 64 rows: seconds on a laptop")
    parser.add_argument("--detach", action="store_true", help="run in the background; graft runs attach follows it")
    parser.add_argument("--force", action="store_true", help="replace the run that is in the output folder")


def run(options: argparse.Namespace) -> int:
    from core.config.load import load_recipe, smoke
    from core.config.run_folder import RunFolder
    from core.errors import ConfigError, GraftError

    if options.detach:
        return detach(options)
    if options.gpus is not None and options.gpus > 1:
        from core.distributed.launch import relaunch, world_size

        if world_size() == 1:
            return relaunch(sys.argv[1:], options.gpus)
    if options.resume:
        if options.recipe:
            raise ConfigError("--resume takes the recipe from the run; give no other", where=options.recipe)
        folder = RunFolder.open(options.resume)
        refuse_running(folder)
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
    from core.distributed.launch import is_main, leave
    from core.training.run import train

    try:
        train(recipe, folder, resume=resume)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            # where nothing can be written any more, the error to be told is the first one
            with contextlib.suppress(GraftError, OSError):
                folder.set_status("failed", error=f"{type(error).__name__}: {error}")
        raise
    leave()
    stopped = folder.info().get("status") == "stopped"
    if not is_main():
        return 130 if stopped else 0
    if stopped:
        print(f"\nstopped; go on with: graft train --resume {folder.path}")
        return 130
    place = folder.path
    print(f"\nrun folder: {place}")
    print(f"next: graft demo {recipe.app} --run {place}   graft report {place}   graft merge {place}")
    return 0


def refuse_running(folder) -> None:
    """Raise when another process is running `folder`."""
    import os

    from core.errors import GraftError

    info = folder.info()
    ours = info.get("pid") in (os.getpid(), os.getppid()) or int(os.environ.get("RANK", "0")) != 0
    if folder.standing() == "running" and not ours:
        raise GraftError(
            f"the run is running already (process {info.get('pid')})",
            where=str(folder.path),
            hint=f"graft runs attach {folder.path}   graft runs stop {folder.path}",
        )


def detach(options) -> int:
    """Make the run folder here, so that mistakes show at once; train in a process of its own."""
    from core.config.load import load_recipe, smoke
    from core.config.run_folder import RunFolder
    from core.errors import ConfigError
    from recipes.verbs.runs import start

    if options.resume:
        folder = RunFolder.open(options.resume)
    else:
        if not options.recipe:
            raise ConfigError("no recipe given", hint="graft ls shows the recipes that ship")
        recipe = load_recipe(find(options.recipe), options.overrides)
        folder = _create(smoke(recipe) if options.smoke else recipe, options)
    pid = start(folder, options.gpus)
    print(f"{folder.path} runs in the background (process {pid})")
    print(f"follow it: graft runs attach {folder.path}   stop it: graft runs stop {folder.path}")
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
