"""Requests for cohorts, and their results.

Recipes, requests, the plan, balancing, the checks before a run, the folder and its manifest.
"""
