"""People's rights over their data: what is kept how long, and what they may have done with it. No Discord."""
