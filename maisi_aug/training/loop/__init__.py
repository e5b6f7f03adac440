"""The training loop that every network shares: steps, precision, weight averages, checkpoints, several processes."""
