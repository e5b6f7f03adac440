"""Bundles written as MONAI bundles, which MONAI's own runner executes.

`export` writes the folder; `sampler` is copied into it as it is, so it imports nothing of this package.
"""
