"""Weights from elsewhere.

Fetched from the Hugging Face hub, found on disk, read without running their code, and converted into bundles.
"""
