"""Several processes that are one bot: who has which shards, and what they tell each other."""
