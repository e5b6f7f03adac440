"""Shared reading of cohorts by exports: accepted cases, labels and their numbers."""
