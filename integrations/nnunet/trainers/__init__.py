"""The folder for nnU-Net's variable nnUNet_extTrainer; `maisi-aug nnunet-trainer-path` prints where it lies."""
