"""Training methods for question answering; importing a file registers its methods."""
