"""Parts that the commands share: the error boundary, flags as values, progress, tables, dry runs."""
