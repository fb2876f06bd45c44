"""The catalogue of optimizers: what each is, where it comes from, what it costs.

Imports neither torch nor any optimizer's library.
"""
