"""Training of the image networks.

Objectives, initial weights that already draw something, and the stages of a recipe.
"""
