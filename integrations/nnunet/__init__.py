"""nnU-Net v2: datasets, labels, plans, folds, trainers, predictions."""
