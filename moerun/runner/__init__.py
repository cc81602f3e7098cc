"""One process, one model: the child that holds the engine, and its parent."""
