"""Settings from files, environment and flags, each with its origin."""
