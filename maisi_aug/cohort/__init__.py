"""What a cohort is asked for and what became of it.

Recipes, requests, the plan, balancing, the checks before a run, the folder and its manifest.
"""
