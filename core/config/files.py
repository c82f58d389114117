"""Atomic writes: a file is either the old one or the whole new one, also after a power cut."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from core.errors import CheckpointError, GraftError


def fsync_dir(path: str | Path) -> None:
    """Make the directory entries of `path` durable (a rename is only safe after this)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str | Iterable[str]) -> None:
    """Write a text, or one piece after the other, as UTF-8 through a temporary file, fsync and rename.

    A full or read-only disk is a `GraftError`; whatever goes wrong, the file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines([text] if isinstance(text, str) else text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise GraftError(
            f"cannot write: {error.strerror or error}", where=str(path), hint="check free space and permissions"
        ) from error


@contextlib.contextmanager
def whole_folder(path: str | Path, mark: str) -> Iterator[Path]:
    """A new folder beside `path` to write into, which takes its place when the block ends without an error.

    Args:
        mark: name of the file that tells a folder of this kind; one that has it is replaced.

    Raises:
        CheckpointError: the place holds something else.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / mark).is_file())):
        raise CheckpointError("the place is taken by something else", where=str(path), hint="give a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_dir(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or torn file is a `GraftError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GraftError("file not found", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GraftError(f"not valid JSON: {error}", where=str(path)) from error
