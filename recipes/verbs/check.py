"""`graft check`: everything that can be wrong before weights are loaded, found in seconds.

The recipe is typed, every source is opened and its first 100 rows are read through the app's own reader. No model and
no torch: a mistake costs two seconds instead of a download.
"""

from __future__ import annotations

import argparse
import itertools
import time

from recipes.catalogue import find

EXAMPLES = """  graft check recipes/translation/quickstart.yaml
  graft check mine.yaml train.lr=1e-3 --show
  graft check mine.yaml --fix              # mend misspelt keys, copy data files without their bad rows"""

ROWS, BAD, SHOWN = 100, 10_000, 10


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--show", action="store_true", help="print the resolved recipe with every default")
    parser.add_argument("--smoke", action="store_true", help="check the small form")
    parser.add_argument("--fix", action="store_true", help="mend misspelt keys; copy data without bad rows")


def run(options: argparse.Namespace) -> int:
    from core.config.load import dump_yaml, load_recipe, resolve_stages, smoke
    from core.config.registry import METHODS, app_of
    from core.training.evaluate import check_sampling, check_select

    start = time.perf_counter()
    path = find(options.recipe)
    if options.fix:
        from core.config.fix import mend

        print(mend(path, options.overrides) or f"{path}: no misspelt keys")
    recipe = load_recipe(path, options.overrides)
    if options.smoke:
        recipe = smoke(recipe)
    if options.show:
        print(dump_yaml(recipe))
    stages = resolve_stages(recipe)
    app, seen = app_of(recipe), dict[str, list]()
    for stage in stages:
        data = stage.recipe.data
        for source in (*data.train, *data.eval):
            if repr(source) not in seen:
                if options.fix and data.on_bad == "raise" and source.path:
                    clean(app, source)
                line, seen[repr(source)] = check_source(app, source, data.on_bad)
                print(line)
        look = METHODS.get(stage.method).look
        if look is not None:
            look([row for source in data.train for row in seen[repr(source)]], stage.recipe, stage.options)
    check_model(recipe)
    check_template(recipe, stages)
    check_select(app_of(recipe), stages)
    check_sampling(recipe)
    methods = ", ".join(stage.method for stage in stages)
    seconds = time.perf_counter() - start
    print(f"{recipe.app}: {len(stages)} stage(s) {methods}; recipe is valid ({seconds:.1f} s)")
    return 0


def check_source(app, source, on_bad: str) -> tuple[str, list]:
    """Read the first rows of one source. Returns the line to print and the rows.

    Raises:
        DataError: with file and line, of the first bad row where such rows are not passed over.
    """
    from core.data.cleaned import Listed
    from core.data.rows import read_source
    from core.errors import DataError

    bad = Listed(ROWS if on_bad == "raise" else BAD)
    rows = list(itertools.islice(read_source(app, source, bad), ROWS))
    if bad.count and (on_bad == "raise" or not rows):
        raise bad.told(usable=bool(rows))
    if not rows:
        raise DataError("the source has no rows", file=source.path or source.reader)
    verdict = getattr(app.readers.get(source.reader), "verdict", None)
    found = f"{verdict(source.path, source.split)}; " if verdict else ""
    line = f"{source.reader} {source.path or '(embedded)'}: {found}first {len(rows)} rows read, {bad.count} bad"
    return "\n".join([line, *(f"  skipped: {error.where}: {error.what}" for error in bad.first)]), rows


def clean(app, source) -> None:
    """Read a source as a whole; where rows of it are bad, write the others beside it and say so.

    Raises:
        DataError: rows are bad, with what to do next.
    """
    from core.data.cleaned import Listed, clean_copies
    from core.data.rows import read_source

    bad = Listed()
    good = sum(1 for _ in read_source(app, source, bad))
    if not bad.errors:
        return
    for error in bad.errors[:SHOWN]:
        print(f"  {error.where}: {error.what}")
    if bad.count > SHOWN:
        print(f"  … and {bad.count - SHOWN} more")
    if not good:
        raise bad.told(usable=False)
    said = "the rows of {} that can be used are in {}: set path: to it"
    ways = "; ".join(said.format(*pair) for pair in clean_copies(bad.errors).items())
    raise bad.errors[0].with_hint(ways or "data.on_bad: skip leaves such rows out")


def check_model(recipe) -> None:
    """A preset is known; a local model folder exists and holds a config; names of hub models are not looked up."""
    from pathlib import Path

    from core.errors import ConfigError, nearest
    from core.models.presets import PRESETS

    name, tokenizer = recipe.model.preset, recipe.model.tokenizer or ""
    if name is not None and name not in PRESETS:
        hint = " ".join(filter(None, [nearest(name, PRESETS), f"known: {', '.join(PRESETS)}"]))
        raise ConfigError(f"unknown preset '{name}'", where=recipe.place_of("model.preset"), hint=hint)
    if tokenizer.startswith("bpe:") and not tokenizer.removeprefix("bpe:").isdigit():
        raise ConfigError(
            "a trained tokenizer is written bpe:SIZE", where=recipe.place_of("model.tokenizer"), hint="e.g. bpe:8192"
        )
    path = recipe.model.path
    if path in (None, "embedded"):
        return
    folder = Path(path)
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if folder.is_dir():
        names = {p.name for p in folder.iterdir()} | {f"model/{p.name}" for p in (folder / "model").glob("*.json")}
        if not names & {"config.json", "adapter_config.json", "model/config.json", "model/adapter_config.json"}:
            raise ConfigError("the folder holds no model (no config.json)", where=path)
    elif folder.is_file():
        raise ConfigError(
            "this is a file", where=recipe.place_of("model.path"), hint="name the folder of a model or a hub id"
        )
    elif looks_local:
        raise ConfigError("model folder not found", where=path)


def check_template(recipe, stages) -> None:
    """A stage that asks for the model's own chat template finds one, where the tokenizer lies on this machine."""
    from core.errors import ConfigError

    source = recipe.model.tokenizer or recipe.model.path
    for stage in stages:
        if source and getattr(stage.options, "template", None) == "model" and lacks_template(source):
            key = f"stages.{stage.index}.with.template" if recipe.stages else "with.template"
            raise ConfigError(
                f"the tokenizer of '{source}' has no chat template",
                where=recipe.place_of(key),
                hint="template: auto takes the model's own where it has one; or name another",
            )


def lacks_template(source: str) -> bool:
    """Whether a tokenizer surely has no chat template: False for a hub id, which is not asked."""
    from pathlib import Path

    from core.config.files import read_json
    from core.models.load import tokenizer_folder

    if source.startswith("bpe:"):
        return True
    folder = Path(tokenizer_folder(source))
    files = [*folder.glob("chat_template.jinja"), *folder.glob("additional_chat_templates/*.jinja")]
    if files or not folder.is_dir():
        return False
    config = folder / "tokenizer_config.json"
    return not (config.is_file() and read_json(config).get("chat_template"))
