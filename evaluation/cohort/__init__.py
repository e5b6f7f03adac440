"""Measurements of a cohort: HU, lesions, agreement of an independent segmenter, memorization."""
