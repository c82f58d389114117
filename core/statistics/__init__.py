"""What data says about a model: inputs of its layers, importance of its weights, how much each part may lose."""
