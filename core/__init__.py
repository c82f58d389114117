"""The shared core: everything that more than one app needs, on floors whose imports only point down."""
