"""Trainable additions to a frozen model. Importing the package makes its tuners known to peft by name.

import core.adapters
model = peft.PeftModel.from_pretrained(base, "folder of one of our adapters")
"""

from __future__ import annotations

from core.adapters.bottleneck import BottleneckConfig
from core.adapters.presets import adapter_preset
from core.adapters.seq_bottleneck import SeqBottleneckConfig
from core.adapters.stacking import stack

__all__ = ["BottleneckConfig", "SeqBottleneckConfig", "adapter_preset", "stack"]
