"""Analyses: pure functions behind the questions that a capture answers."""
