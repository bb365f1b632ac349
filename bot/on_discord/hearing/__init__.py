"""What people send, as text: messages with all that they hold, files, and what they refer to."""
