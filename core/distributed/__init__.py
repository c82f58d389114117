"""Several devices: starting processes, and knowing which one this is."""
