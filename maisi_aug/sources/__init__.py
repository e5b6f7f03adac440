"""Sources of the label maps of cases.

Planted lesions, a bank, mask networks, or maps that are drawn as given.
"""
