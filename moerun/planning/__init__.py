"""Decisions as pure functions: from a model, a machine and a strategy to a plan."""
