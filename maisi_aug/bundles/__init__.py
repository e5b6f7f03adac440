"""Bundles shipped inside the package, one folder each."""
