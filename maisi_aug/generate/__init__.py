"""Make the files of a resolved run: attempts, writing, the run over all cases; and phantoms on disk."""
