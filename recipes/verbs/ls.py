"""`graft ls`: what there is to run."""

from __future__ import annotations

import argparse

from recipes.catalogue import shipped, summary

EXAMPLES = """  graft ls
  graft ls methods"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        default="recipes",
        choices=["recipes", "apps", "methods", "readers", "presets", "adapters", "edits"],
    )


def run(options: argparse.Namespace) -> int:
    from core.config.registry import ADAPTERS, EDITS, METHODS, app_names, get_app
    from core.config.schema import AdapterConfig

    if options.what == "recipes":
        rows = [(name, summary(path)) for name, path in shipped().items()]
    elif options.what == "presets":
        from core.models.presets import PRESETS

        rows = [(name, "") for name in PRESETS]
    elif options.what in ("adapters", "edits"):
        parts = ADAPTERS if options.what == "adapters" else EDITS
        rows = [(name, _first_line(AdapterConfig if name == "lora" else parts.get(name).options_cls)) for name in parts]
    else:
        apps = [get_app(name) for name in app_names()]
        if options.what == "apps":
            rows = [(app.name, f"{len(app.readers.names())} readers") for app in apps]
        elif options.what == "methods":
            rows = [(name, _first_line(METHODS.get(name).build)) for name in METHODS.names()]
        else:
            rows = [(f"{app.name}: {name}", _first_line(app.readers.get(name))) for app in apps for name in app.readers]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]
