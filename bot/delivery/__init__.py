"""A growing text as Discord messages: where it is cut, what is shown, at which pace. No discord.py."""
