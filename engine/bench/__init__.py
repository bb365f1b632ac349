"""How fast the engine runs, beside others and beside what memory allows: `python -m engine bench`."""
