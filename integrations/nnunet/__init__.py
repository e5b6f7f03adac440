"""nnU-Net v2.

Datasets, labels, plans, folds, training, predictions; `trainers/` is the folder for nnUNet_extTrainer.
"""
