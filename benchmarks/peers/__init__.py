"""Plain scripts of what we compare with; they use the libraries and nothing of ours but the data."""
