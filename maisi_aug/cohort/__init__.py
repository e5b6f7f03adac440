"""What was requested for a cohort, and its outcome.

Recipes, requests, the plan, balancing, the checks before a run, the folder and its manifest.
"""
