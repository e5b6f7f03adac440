"""Names of labels, and what is known about them.

Names and ids of MAISI and TotalSegmentator, body regions, lesion sizes, reference HU.
"""
