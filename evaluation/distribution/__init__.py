"""Whole sets of cases against each other: features of organs and lesions, their distances, and equivalence."""
