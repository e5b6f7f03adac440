"""Weights from elsewhere: fetched from the Hugging Face hub, read from checkpoints without running code, converted to bundles."""
