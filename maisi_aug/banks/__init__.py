"""Banks of label maps: a user's folders, datasets and data lists, and NVIDIA's mask database; which files belong together, what their ids mean."""
