"""Measurements of a cohort: HU, lesions, agreement with an independent segmenter, memorization."""
