"""What runs inside the sandbox, on the standard library alone: nothing here imports the rest of the project."""
