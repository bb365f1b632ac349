"""Everything that touches discord.py: events, commands, buttons, messages."""
