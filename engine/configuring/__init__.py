"""The settings of an engine: how they are read, and what model and options they choose."""
