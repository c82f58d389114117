"""Where the development data sets are: the folder in GRAFT_DATA, or `shared/data` beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.bar import ROOT, Unavailable


def data_root() -> Path:
    """The folder that holds `translation/`. GRAFT_DATA may name it or its parent's `data/`.

    Raises:
        Unavailable: there is no such folder.
    """
    given = os.environ.get("GRAFT_DATA")
    candidates = [Path(given), Path(given) / "data"] if given else [ROOT.parent / "shared" / "data"]
    for folder in candidates:
        if (folder / "translation").is_dir():
            return folder.resolve()
    raise Unavailable(f"no data: {' and '.join(map(str, candidates))} hold no translation/ (set GRAFT_DATA)")


def read_lines(name: str) -> list[str]:
    """The lines of a text file below the data root, cut at LF only."""
    path = data_root() / name
    if not path.is_file():
        raise Unavailable(f"no data: {path} is missing")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
