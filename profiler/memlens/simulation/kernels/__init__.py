"""Where CUDA kernels differ from what their operators return."""
