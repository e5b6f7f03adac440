"""Configurations of NVIDIA's scripts (NV-Generate-CTMR), read as what this package does instead.

`options` says which option of this package each of theirs corresponds to, `configs` recognises their files, `migration`
builds the command.
"""
