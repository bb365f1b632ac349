"""Tests of what the bot says, in every language."""
