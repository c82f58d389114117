"""What everything that is served has, whatever it answers with: a card in its folder, and an end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from core.config.files import read_json, write_json
from core.config.run_folder import versions

CARD = "graft_pipeline.json"


class Served:
    """Use it in a `with`, or `close` it."""

    app: ClassVar[str] = ""

    def close(self) -> None:
        """Give back what is held in memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def _write_card(self, folder: Path, config: Mapping[str, Any], **more: Any) -> None:
        """Write down who serves the folder and how, and with which versions it was saved."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        write_json(folder / CARD, {"class": kind, "app": self.app, "config": config, **more, "versions": versions()})


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a folder, {} where it has none."""
    path = Path(folder) / CARD
    return read_json(path) if path.is_file() else {}
