"""A run as a picture: the bar of its peak, and its timeline."""
