"""From a resolved cohort to its files: attempts, writing, the run over all cases; phantoms on disk."""
