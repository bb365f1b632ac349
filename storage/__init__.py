"""What the bot remembers, in one SQLite file. Knows neither Discord's library nor the engine."""
