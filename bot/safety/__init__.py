"""What may be asked and what may be shown: lists of words and patterns, the output filter, moderation."""
