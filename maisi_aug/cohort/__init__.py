"""What a cohort is asked for and what it became: recipes, requests, the plan, balance, checks before a run, the folder and its manifest."""
