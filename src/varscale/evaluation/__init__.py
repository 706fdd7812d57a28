"""Measurements on held-out images."""
