"""Experts at run time: which are held in memory, and how the others get there."""
