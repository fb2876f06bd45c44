"""Turns memory snapshots that torch's own tools made into captures. Needs no torch."""
