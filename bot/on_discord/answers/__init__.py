"""How an answer is shown on Discord, and steered by what is below it."""
