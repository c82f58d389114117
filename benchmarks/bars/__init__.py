"""One file a bar, each with a `BAR`."""
