"""What a job would need on a GPU that is not here: simulating it, and judging what comes out."""
