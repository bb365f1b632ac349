"""The Discord bot: everything between Discord and the engine."""
