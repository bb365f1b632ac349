"""What moderators decide for their server: its settings, who may ask, and what is told to moderators."""
