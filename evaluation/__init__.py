"""Measurements of cohorts and of the networks that made them."""
