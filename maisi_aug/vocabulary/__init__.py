"""Label names and ids of MAISI and TotalSegmentator, body regions, lesion sizes, and reference HU."""
