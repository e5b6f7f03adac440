"""Training of the image networks: objectives, starts from set weights, stages and their recipe."""
