"""`python -m recipes train …`: the same as `graft train …`, and what torchrun starts on every device."""

from __future__ import annotations

import sys

from recipes.cli import main

sys.exit(main())
