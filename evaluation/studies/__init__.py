"""The experiments behind the README's figures, with their results; run from a checkout as `python -m maisi_aug.evaluation.studies.NAME`, not part of the wheel."""
