"""One job under several optimizers, side by side."""
