"""Lesions on label maps: planted at exact volumes, grown, deformed, taken out again."""
