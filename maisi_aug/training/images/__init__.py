"""Training of the image networks.

Objectives (``vae``, ``flow``, and the terms of their losses), initial weights that already draw something (``wavelet``
for the autoencoder; ``start``, ``label_means``, ``lookup`` and ``anchors`` for U-Net and ControlNet), and the stages of
a recipe (``stages``).
"""
