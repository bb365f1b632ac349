"""What moderators do: blocks, resets, and the log that tells of it."""
