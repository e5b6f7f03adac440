"""Teaching a ControlNet new labels: slots, checks, objective, and the bundle that results."""
