"""The experiments behind the README's figures, with their results.

They run from a checkout, as `python -m maisi_aug.evaluation.studies.NAME`, and are not part of the wheel.
"""
