"""Checkpoints that are either whole or not there.

A checkpoint is written as `checkpoint-N.tmp`; a manifest with every file's size goes in last; all is flushed, and the
folder is renamed. `latest` and `best` are small files that name a checkpoint. Whatever instant the process is killed
at, the newest committed checkpoint is intact.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from core.config.files import fsync_dir, read_json, write_json, write_text
from core.errors import CheckpointError, GraftError

MANIFEST = "manifest.json"


def commit(folder: Path, step: int, write: Callable[[Path], None], extra: dict | None = None) -> Path:
    """Write a checkpoint through `write(temporary folder)` and make it visible as one step.

    Raises:
        CheckpointError: the disk is full or read-only; earlier checkpoints are untouched.
    """
    final = folder / f"checkpoint-{step}"
    temporary = folder / f"checkpoint-{step}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        sizes = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
            sizes[str(path.relative_to(temporary))] = path.stat().st_size
        write_json(temporary / MANIFEST, {"step": step, "files": sizes, **(extra or {})})
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        fsync_dir(folder)
        write_text(folder / "latest", final.name)
    except (OSError, GraftError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint cannot be written: {error}",
            where=str(final),
            hint="free some space or make the folder writable; the earlier checkpoints are intact",
        ) from error
    return final


def is_whole(checkpoint: Path) -> bool:
    """The manifest is there and every file in it has its size."""
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (GraftError, OSError, KeyError, TypeError):
        return False


def checkpoints(folder: Path) -> list[Path]:
    """Committed, whole checkpoints, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.suffix != ".tmp" and p.name.split("-")[1].isdigit()]
    return sorted((p for p in found if is_whole(p)), key=lambda p: int(p.name.split("-")[1]))


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from; torn ones are passed over."""
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def best(folder: Path) -> Path | None:
    """The checkpoint that `best` names, if it is whole."""
    pointer = folder / "best"
    if not pointer.is_file():
        return None
    chosen = folder / pointer.read_text(encoding="utf-8").strip()
    return chosen if is_whole(chosen) else None


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    protected = best(folder)
    for old in checkpoints(folder)[:-keep]:
        if old != protected:
            shutil.rmtree(old)
