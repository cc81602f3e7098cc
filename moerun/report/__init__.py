"""Values to the terminal."""
