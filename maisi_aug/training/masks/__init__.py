"""Training of the networks that generate label maps."""
