"""The very same bot on a simulated Discord in the local browser."""
