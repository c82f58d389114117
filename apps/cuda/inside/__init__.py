"""What runs inside the sandbox: plain Python that knows only the standard library, numpy and torch."""
