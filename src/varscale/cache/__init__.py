"""Token cache: encode once, train many. Memory-mapped token maps with a manifest that says whose they are."""
