"""Layers: attention over scales, adaptive blocks, convolutions."""
