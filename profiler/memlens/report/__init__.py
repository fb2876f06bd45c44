"""Reading a capture: `payload` for machines, `terminal` for people, both from `view`."""
