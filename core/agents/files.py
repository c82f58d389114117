"""What an agent writes: whole files with every version kept, by relative paths only.

The store is a log of writes and a folder that mirrors it. The log decides: a store that is opened again at an earlier
length is that earlier store, whatever a killed run left in the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath

from core.config.files import write_text
from core.errors import DataError

LARGEST = 1 << 20


class FileStore:
    """Files below `folder/files`, their history in `folder/writes.jsonl`.

    Args:
        length: take only the first so many writes; None takes all. A last half-written line never counts.
        largest: characters of one file.
    """

    def __init__(self, folder: str | Path, length: int | None = None, largest: int = LARGEST) -> None:
        self.folder, self.largest = Path(folder), largest
        self._log = self.folder / "writes.jsonl"
        self._writes: list[tuple[str, str | None]] = []
        if self._log.is_file():
            for line in self._log.read_text(encoding="utf-8").split("\n")[:-1]:
                path, content = json.loads(line)
                self._writes.append((path, content))
        if length is not None and length > len(self._writes):
            raise DataError(f"the store has {len(self._writes)} writes, not {length}", file=self._log)
        self._writes = self._writes[:length]
        write_text(self._log, "".join(_line(*write) for write in self._writes))
        self._mirror()

    def __len__(self) -> int:
        """Writes and deletions so far."""
        return len(self._writes)

    @property
    def files(self) -> dict[str, str]:
        """Path → content, as it is now."""
        now: dict[str, str] = {}
        for path, content in self._writes:
            if content is None:
                now.pop(path, None)
            else:
                now[path] = content
        return dict(sorted(now.items()))

    def write(self, path: str, content: str) -> None:
        """Replace a whole file. Raises `DataError` for a path outside, a folder's name, or too much text."""
        path = normalised(path)
        if len(content) > self.largest:
            raise DataError(
                f"{path} would have {len(content)} characters", hint=f"the limit is {self.largest}; split it"
            )
        for other in self.files:
            if other.startswith(path + "/") or path.startswith(other + "/"):
                raise DataError(f"{path} would be a file and a folder at once", hint=f"{other} is there already")
        self._add(path, content)

    def delete(self, path: str) -> None:
        """Remove a file. Raises `DataError` where there is none."""
        path = normalised(path)
        if path not in self.files:
            raise DataError(f"there is no file {path}", hint=f"the store has: {', '.join(self.files) or 'nothing'}")
        self._add(path, None)

    def read(self, path: str) -> str:
        """A file's content. Raises `DataError` where there is none."""
        path = normalised(path)
        if path not in self.files:
            raise DataError(f"there is no file {path}", hint=f"the store has: {', '.join(self.files) or 'nothing'}")
        return self.files[path]

    def versions(self, path: str) -> list[str | None]:
        """Everything that was at a path, oldest first; None where it was deleted."""
        return [content for other, content in self._writes if other == normalised(path)]

    def _add(self, path: str, content: str | None) -> None:
        with open(self._log, "a", encoding="utf-8") as handle:
            handle.write(_line(path, content))
            handle.flush()
            os.fsync(handle.fileno())
        self._writes.append((path, content))
        place = self.folder / "files" / path
        if content is None:
            place.unlink(missing_ok=True)
        else:
            write_text(place, content)

    def _mirror(self) -> None:
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        for path, content in self.files.items():
            write_text(self.folder / "files" / path, content)


def _line(path: str, content: str | None) -> str:
    return json.dumps([path, content], ensure_ascii=False) + "\n"


def normalised(path: str) -> str:
    """A relative path without `.` and `..`. Raises `DataError` for anything that could lead outside."""
    pure = PurePosixPath(path.replace("\\", "/"))
    parts = [part for part in pure.parts if part != "."]
    if pure.is_absolute() or ".." in parts or not parts or any(c in path for c in "\0\n:"):
        raise DataError(f"'{path}' is not a relative path inside the store", field="path")
    return "/".join(parts)
