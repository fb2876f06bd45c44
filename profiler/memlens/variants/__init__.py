"""Another optimizer in the place of the one that a job constructs."""
