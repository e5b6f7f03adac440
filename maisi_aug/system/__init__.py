"""Foundations of all other packages.

Random seeds, strict models, progress, files and folders that appear whole or not at all, locks, and worker processes.
"""
