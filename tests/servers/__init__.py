"""Local servers that behave as hosts of models do, faults included."""
