"""Every error a user of graft can cause, as one small family.

An error says **what** is wrong, **where** it is (file, line, key or field) and **what to do** about it. Anything
that derives from `GraftError` is printed by the command line without a traceback; everything else is our own bug and
keeps its traceback. This module knows nothing of the rest of the project.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class GraftError(Exception):
    """Something the user can put right.

    Args:
        what: one sentence saying what is wrong.
        where: file and line, key path, module or field.
        hint: the next step.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint:  {self.hint}")
        return "\n".join(lines)


class ConfigError(GraftError):
    """A recipe key is unknown, ill-typed or contradicts another."""


class DataError(GraftError):
    """A file or a row of the user's data is unusable."""

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.file = None if file is None else str(file)
        self.line, self.field, self.got, self.expected = line, field, got, expected
        place = self.file or ""
        if line is not None:
            place += f":{line}"
        if field is not None:
            place += f", field {field!r}" if place else f"field {field!r}"
        if expected is not None or got is not None:
            shown = repr(got)
            what = f"{what} (got {shown[:80]}{'…' if len(shown) > 80 else ''}"
            what += f", expected {expected})" if expected is not None else ")"
        super().__init__(what, where=place or None, hint=hint)

    def with_hint(self, hint: str | None) -> DataError:
        """The same error with another next step."""
        return _rebuild_data_error(self.what, self.where, hint, self.file, self.line, self.field)

    def __reduce__(self):
        return (_rebuild_data_error, (self.what, self.where, self.hint, self.file, self.line, self.field))


def _rebuild_data_error(what, where, hint, file, line, field) -> DataError:
    error = DataError(what, file=file, line=line, field=field, hint=hint)
    error.where = where
    return error


class TemplateError(GraftError):
    """A prompt template is unknown or lacks a field."""


class LanguageError(GraftError):
    """A language code is unknown, or source and target are the same."""


class BackendUnavailable(GraftError):
    """A library, tool or device that was asked for is not on this machine."""


class CheckpointError(GraftError):
    """A checkpoint or a model folder is torn, missing or of another run."""


class MergeError(GraftError):
    """Adapter weights cannot be folded into this base."""


class UnsupportedModelError(GraftError):
    """The model family has no entry in the topology table."""


class UnsupportedError(GraftError):
    """Two features cannot be combined; raised at construction."""


class AppInputError(GraftError):
    """An input given to a pipeline is unusable."""


class BudgetExceeded(GraftError):
    """A limit on time, tokens or memory was reached."""


class BudgetError(GraftError):
    """No choice fits the budget that was asked for; `best_achievable` is the nearest one that can be had."""

    def __init__(self, what: str, *, best_achievable: object = None, **place: str | None) -> None:
        self.best_achievable = best_achievable
        super().__init__(what, **place)


class SandboxError(GraftError):
    """Untrusted code could not be isolated as strictly as asked."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The clause "did you mean 'x'?" for a misspelt name, or "" when nothing is close."""
    close = difflib.get_close_matches(str(name), [str(o) for o in options], n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""
