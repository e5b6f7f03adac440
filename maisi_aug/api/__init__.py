"""The front door for Python: what ``import maisi_aug`` hands out, and what the commands call.

Each function takes what its command takes, under the names of a recipe's fields, and gives back objects instead of
text; bars on a terminal and in a notebook.
"""
