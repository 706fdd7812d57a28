"""Generative models over token maps, their sizes, costs and sampling."""
