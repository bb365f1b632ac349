"""How much anybody may ask: rate limits and the guard against loops. Pure, with a clock from outside."""
