"""Data operators with the shape of Data-Juicer's: small classes registered by name, listed in a recipe."""
