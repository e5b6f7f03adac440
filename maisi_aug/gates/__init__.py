"""Quality gates: every check of a label map or an image returns a verdict with its figures."""
