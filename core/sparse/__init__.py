"""Fine-tuning that changes few weights, or keeps few of them. Importing the package makes its tuner known to peft.

import core.sparse
model = peft.PeftModel.from_pretrained(base, "folder of a SpIEL adapter")
"""

from __future__ import annotations

from core.sparse.spiel import SpielConfig

__all__ = ["SpielConfig"]
