"""What every room stands on.

Random seeds, files and folders that appear whole or not at all, locks, and worker processes.
"""
