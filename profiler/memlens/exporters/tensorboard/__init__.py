"""A run for the dashboards that every TensorBoard has: scalars, hyperparameters, text, images."""
