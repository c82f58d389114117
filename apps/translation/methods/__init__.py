"""Training methods for translation, one file per paper; importing a file registers its methods."""
