"""Models on disk: how they are named, and where they are found."""
