"""The training loop that every network shares: steps, precision, averages, checkpoints, several processes."""
