"""Commands of the developers and of the Makefile; none of them ships in the package."""
