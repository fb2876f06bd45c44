"""Optimizers of other libraries, made from a row of the catalogue: `make(request)` in each file."""
