"""Cohort recipes ready to run; the YAML files beside this module are the content."""
