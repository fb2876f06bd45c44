"""Models that memlens can build by name, and the job that trains one of them.

The table imports neither torch nor transformers; only `build` does.
"""
