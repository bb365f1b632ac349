"""Tests of what is kept and how long."""
