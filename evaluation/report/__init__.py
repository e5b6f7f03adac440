"""A benchmark or a cohort as one page for the browser."""
