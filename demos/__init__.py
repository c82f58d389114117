"""Demos: one Gradio page per app, made by `build(pipeline)`, opened by `launch`.

A demo needs no network and no download: without a run it opens the newest finished run of its app below `runs/`, and
without one of those the model that ships with the project. Gradio is imported only when a page is opened, with its
analytics off.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path
from typing import Any

from core.errors import BackendUnavailable, ConfigError, nearest

_NOT_APPS = {"finding", "look", "upload"}


def names() -> list[str]:
    """Apps that have a demo."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_APPS)


def build(app: str, run: str | Path | None = None) -> Any:
    """The page of `app` as `gr.Blocks`, over `run` (a run or model folder; see `choose_run` for None).

    Raises:
        ConfigError: no demo of that name. BackendUnavailable: gradio is not installed.
    """
    if app not in names():
        hint = " ".join(filter(None, [nearest(app, names()), f"demos: {', '.join(names())}"]))
        raise ConfigError(f"no demo for '{app}'", hint=hint)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        module = importlib.import_module(f"demos.{app}")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise BackendUnavailable("gradio is not installed", hint="pip install gradio") from error
    from core.config.registry import get_app

    # An app whose runs are of several kinds opens them itself.
    opened = getattr(module, "opened", None) or get_app(app).pipeline_cls.from_pretrained
    return module.build(opened(str(run or choose_run(app))))


def launch(
    app: str, run: str | Path | None = None, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True
) -> str:
    """Open the demo of `app` and serve it until interrupted; with `block=False` return its address at once.

    Args:
        run: run folder, model folder or "embedded"; None takes `choose_run`.
        port: 0 takes the first free one from 7860.
    """
    page = build(app, run)
    from demos.look import serve

    return serve(page, host=host, port=port, block=block)


def choose_run(app: str, root: str | Path = "runs") -> str:
    """The newest finished run of `app` below `root`, else "embedded"."""
    from core.config.run_folder import find_runs

    for folder in find_runs(root):
        info = folder.info()
        if info.get("app") == app and info.get("status") == "done" and folder.model_dir.is_dir():
            return str(folder.path)
    return "embedded"
