"""What every export reads of a cohort: its accepted cases, their labels and numbers."""
