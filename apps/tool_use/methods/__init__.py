"""Training methods for tool use, one file each; importing a file registers its methods."""
