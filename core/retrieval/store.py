"""Indexes as folders: index.json, ids.json, lists of words as JSON, arrays as .npy that are opened memory-mapped.

A folder appears whole: it is written beside its place and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.config.files import fsync_dir, read_json, write_json
from core.errors import DataError, GraftError

HEAD = "index.json"
VERSION = 1
KINDS = {
    "bm25": "core.retrieval.bm25:Bm25Index",
    "dense": "core.retrieval.dense:DenseIndex",
    "ann": "core.retrieval.ann:AnnIndex",
}


def save(
    path: str | Path,
    head: Mapping[str, Any],
    ids: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    lists: Mapping[str, Sequence[str]] | None = None,
    files: Mapping[str, Any] | None = None,
) -> None:
    """Write one index.

    Args:
        head: its kind and settings. files: name → function that writes that file when given its path.

    Raises:
        DataError: the place holds something that is no index. GraftError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / HEAD).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise DataError("the place is taken by something that is no index", file=path, hint="give a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        for name, write in (files or {}).items():
            write(str(temporary / name))
        for name, values in {"ids": ids, **(lists or {})}.items():
            write_json(temporary / f"{name}.json", list(values))
        write_json(
            temporary / HEAD,
            {**head, "version": VERSION, "documents": len(ids), "arrays": list(arrays), "lists": list(lists or {})},
        )
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        raise GraftError(f"the index cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(path: str | Path, kind: str) -> tuple[dict[str, Any], list[str], dict[str, np.ndarray], dict[str, list[str]]]:
    """Head, ids, memory-mapped arrays and lists. Raises `DataError` for a folder that is no such index."""
    path = Path(path)
    head = head_of(path)
    if head.get("kind") != kind:
        raise DataError(f"this is an index of the kind '{head.get('kind')}'", file=path, expected=kind)
    try:
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in head["arrays"]}
        lists = {name: read_json(path / f"{name}.json") for name in head["lists"]}
        ids = read_json(path / "ids.json")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the index is torn: {error}", file=path, hint="build it again") from error
    if len(ids) != head["documents"]:
        raise DataError("the index is torn", file=path / "ids.json", got=len(ids), expected=head["documents"])
    return head, ids, arrays, lists


def head_of(path: Path) -> dict[str, Any]:
    """index.json. Raises `DataError` when there is none or it is of a later version."""
    if not (path / HEAD).is_file():
        raise DataError("no index here", file=path, hint=f"an index is a folder with {HEAD}")
    head = read_json(path / HEAD)
    if head.get("version") != VERSION:
        raise DataError("the index is of another version", file=path, got=head.get("version"), expected=VERSION)
    return head


def load_index(path: str | Path) -> Any:
    """The index in a folder, of whatever kind it is. Raises `DataError` when there is none."""
    import importlib

    kind = head_of(Path(path)).get("kind")
    if kind not in KINDS:
        raise DataError(f"unknown kind of index '{kind}'", file=Path(path) / HEAD, expected=", ".join(KINDS))
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name).load(path)
