"""Training of the networks of a bundle: one loop, an objective per network, and stages driven by a recipe."""
