"""What stands in the stack of a model in the place of a block and holds one or several of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import nn


class Compound(nn.Module):
    """A stand-in for a block, called as the block was."""

    @abstractmethod
    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and block of each branch, in the order in which they run."""

    @property
    def attention_type(self) -> Any:
        """What some base models ask of a block to choose its mask."""
        return next(self.branches())[1].attention_type
