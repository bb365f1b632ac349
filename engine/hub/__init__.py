"""Models at Hugging Face: which one is meant, whether it will run here, and how it gets here."""
