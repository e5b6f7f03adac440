"""What every export reads of a cohort: accepted cases, labels and their numbers."""
