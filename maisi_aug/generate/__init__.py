"""From a resolved run to its files: attempts, writing, the run over all cases; and phantoms on disk."""
