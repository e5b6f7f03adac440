"""A benchmark or a cohort as one page for a browser."""
