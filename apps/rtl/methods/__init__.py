"""Training methods of the RTL app, one file a paper."""
