"""Scores of segmentations: overlap, lesion detection, statistics over patients and trainings, comparisons."""
