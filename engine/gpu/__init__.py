"""The decoder on a GPU: the model, and a paged KV cache of blocks."""
