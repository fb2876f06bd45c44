"""Questions about all ranks of a run: each rank is asked for a summary, and an engine aggregates them."""
