"""What scripts and libraries find in place of CUDA: tensors, `torch.cuda`, and the rest of torch."""
