"""Runs a training on tensors without data, on a CUDA device that is not there."""
