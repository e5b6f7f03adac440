"""Fresh cases while training, and cohorts that are still growing."""
