"""Torch's CUDA caching allocator: its settings, what it did in a recorded history, and a model of it.

Needs neither torch nor a GPU. Facts are from torch's source, c10/cuda/CUDACachingAllocator.cpp and
c10/core/AllocatorConfig.{h,cpp} (2.0 to 2.13), and are checked against recordings of the real one.
"""
