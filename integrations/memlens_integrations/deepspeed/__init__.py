"""DeepSpeed: what its engines hold, and what it takes to simulate them or to change their stage."""
