"""From a run that is decided to its files: attempts, writing, the run over all cases; and phantoms on disk."""
