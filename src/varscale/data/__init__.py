"""Images: one data set a file behind one interface, and an order that is a pure function of (seed, step)."""
