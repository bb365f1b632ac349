"""What operators see of a running bot: figures, health and presence. Never what people write."""
