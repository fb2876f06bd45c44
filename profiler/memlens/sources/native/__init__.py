"""The part of memlens that is not Python: one C++ file, compiled where it is used."""
