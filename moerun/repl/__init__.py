"""A conversation on a terminal: its commands, its turns, and the line that is edited."""
