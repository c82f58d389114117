"""Checkpoints that are either whole or not there.

A checkpoint is written as `checkpoint-N.tmp`; a manifest with every file's size goes in last; all is flushed, and the
folder is renamed. Whatever instant the process is killed at, the newest committed checkpoint is intact. The manifest
says whether the checkpoint was the best when it was written, so the newest that says so is the best. `latest` and
`best` are small files for people; nothing here reads them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.config.files import fsync_dir, read_json, write_json, write_text
from core.errors import CheckpointError, GraftError

MANIFEST = "manifest.json"


def commit(folder: Path, step: int, write: Callable[[Path], None], extra: dict | None = None) -> Path:
    """Write a checkpoint through `write(temporary folder)` and make it visible as one step.

    Raises:
        CheckpointError: the disk is full or read-only; earlier checkpoints are untouched, also one of this step.
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
        fsync_dir(temporary)
        if is_whole(final):
            shutil.rmtree(temporary)
            return final
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        fsync_dir(folder)
        write_text(folder / "latest", final.name)
        if (extra or {}).get("best"):
            write_text(folder / "best", final.name)
    except (OSError, GraftError, RuntimeError, SafetensorError) as error:
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
    """The newest whole checkpoint that was the best when it was written."""
    return next((p for p in reversed(checkpoints(folder)) if manifest(p).get("best")), None)


def manifest(checkpoint: Path) -> dict[str, Any]:
    """What was noted of a whole checkpoint: step, files, best, best_value, tokens_seen."""
    return read_json(checkpoint / MANIFEST)


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what killed writes left behind."""
    protected, whole = best(folder), checkpoints(folder)
    for old in whole[:-keep]:
        if old != protected:
            shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob("checkpoint-*"):
        if left not in whole:
            shutil.rmtree(left, ignore_errors=True)
