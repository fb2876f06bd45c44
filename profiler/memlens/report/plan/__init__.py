"""A plan, for people."""
