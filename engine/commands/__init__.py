"""The engine's own commands, a file each: how it is called, what it does, what it prints."""
