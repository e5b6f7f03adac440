"""Adapters that hand cohorts on to training frameworks."""
