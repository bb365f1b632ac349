"""What the bot says to people, in every language it speaks. Knows nothing of Discord."""
