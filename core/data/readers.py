"""The readers of an app by name: what recipes name under `reader:`, and what `load_data` reads with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from core.config.registry import Registry
from core.data.rows import BadRows
from core.errors import ConfigError, nearest

Example = TypeVar("Example")


class Readers(Registry[Callable[..., Iterator[Example]]]):
    """Functions `(path, *, split, on_bad, …) -> examples`; what follows `on_bad` are a reader's own arguments.

    Args:
        usual: the reader that `load` takes when none is named.
    """

    def __init__(self, usual: str = "jsonl") -> None:
        super().__init__("reader")
        self.usual = usual

    def arguments(self, name: str) -> list[str]:
        """A reader's own arguments: what `with:` of a source may hold."""
        parameters = inspect.signature(self.get(name)).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("split", "on_bad")]

    def load(
        self,
        path: str | Path | None = None,
        reader: str | None = None,
        *,
        split: str | None = None,
        limit: int | None = None,
        on_bad: BadRows | str | None = None,
        **arguments: Any,
    ) -> list[Example]:
        """Read examples into a list: `load_data("data/train", "moses", src="de", tgt="en")`.

        Args:
            reader: its name; the app's usual one by default. limit: most examples.
            on_bad: "raise" at the first malformed row, "skip" such rows, or a `BadRows` that keeps them.
            arguments: the reader's own.

        Raises:
            ConfigError: unknown reader or argument. DataError: unusable file or row.
        """
        name = reader or self.usual
        read, known = self.get(name), self.arguments(name)
        for unknown in sorted(set(arguments) - set(known)):
            takes = f"it takes: {', '.join(known) or 'none'}"
            hint = " ".join(filter(None, [nearest(unknown, known), takes]))
            raise ConfigError(f"reader '{name}' has no argument '{unknown}'", hint=hint)
        if limit is not None and limit < 0:
            raise ConfigError(f"limit is {limit}; it is at least 0")
        if isinstance(on_bad, str) and on_bad not in ("raise", "skip"):
            raise ConfigError(f"on_bad is '{on_bad}'", hint="take 'raise', 'skip' or a BadRows")
        bad = BadRows(on_bad) if isinstance(on_bad, str) else on_bad or BadRows()
        return list(islice(read(path, split=split, on_bad=bad, **arguments), limit))
