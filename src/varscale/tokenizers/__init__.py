"""Tokenizers: images to token maps of every scale and back, and what training them needs."""
