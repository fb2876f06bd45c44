"""Requests for memory that failed, explained for people and for programs."""
