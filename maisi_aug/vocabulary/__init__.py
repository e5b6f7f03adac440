"""What labels are called and what is known of them.

Names and ids of MAISI and TotalSegmentator, body regions, lesion sizes, reference HU.
"""
