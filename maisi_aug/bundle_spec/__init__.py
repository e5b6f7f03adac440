"""Specification of a bundle and its networks.

`bundle.yaml` and its loading, the sizes and HU that were taught, the grids that work, presets, and the bundles known
by name. The weights that ship with the package are data, in `maisi_aug/bundles/`.
"""
