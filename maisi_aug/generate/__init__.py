"""From a resolved cohort to its files: attempts, writing, the run over all cases; and phantoms on disk."""
