"""The decoder on the CPU: the model, and a KV cache of slots."""
