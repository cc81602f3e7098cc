"""HTTP: the APIs that clients know, and the scheduler that lets models share one machine."""
