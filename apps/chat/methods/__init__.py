"""Training methods for chat, one file per paper; importing a file registers its methods."""
