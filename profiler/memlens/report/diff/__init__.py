"""How two runs differ, for the terminal and for programs."""
