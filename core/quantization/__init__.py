"""Number formats of frozen weights: named in recipes, loaded with the model or laid on it."""
