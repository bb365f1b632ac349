"""How a question comes in, from a message or a command."""
