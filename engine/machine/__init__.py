"""What this machine offers: cores, memory, a GPU."""
