"""The shared core: everything that more than one app needs, on floors whose imports only point down."""

import logging

# Libraries import bitsandbytes wherever it is installed, and it warns of kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
