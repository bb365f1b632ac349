"""What people set: for a conversation, for a server, and the texts that the model is told first."""
