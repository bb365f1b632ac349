"""Looks at models and machines, and says what suits."""
