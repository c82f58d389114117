"""Training methods for embeddings, one file per paper; importing a file registers its methods."""
