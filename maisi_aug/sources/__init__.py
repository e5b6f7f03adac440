"""Where the label map of a case comes from.

Planted lesions, a bank, mask networks, or maps that are drawn as given.
"""
