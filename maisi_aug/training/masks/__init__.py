"""Training of the mask networks, which generate label maps."""
