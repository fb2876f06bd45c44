"""What several commands ask in the same words: a job to simulate, its sharding, a Ray cluster."""
