"""Banks of label maps: a user's folders, datasets and data lists, and NVIDIA's mask database.

Which files belong together, and what their ids mean.
"""
