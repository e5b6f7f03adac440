"""Lesions on label maps: planted at exact volumes, grown, deformed, and taken out again."""
