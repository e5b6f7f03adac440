"""The public interface for Python, which the commands use as well.

Each function takes the options of its command, named like the fields of a recipe, and returns objects instead of text.
Progress is shown on a terminal and in a notebook.
"""
