"""Quality gates: each checks a label map or an image and returns a verdict with its figures."""
