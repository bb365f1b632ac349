"""What describes a model: its architecture, its manifest, the bytes it takes."""
