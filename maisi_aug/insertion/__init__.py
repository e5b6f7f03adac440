"""Lesions in the user's own CTs: the real image outside, a drawn lesion inside."""
