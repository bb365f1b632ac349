"""How fast the engine runs here, beside others and beside what the memory allows: `python -m engine bench`."""
