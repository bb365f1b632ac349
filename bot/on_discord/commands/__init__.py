"""The slash commands, a file for each group of them, and the tree that holds them all."""
