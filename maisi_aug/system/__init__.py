"""What touches the operating system.

Files and folders that appear whole or not at all, locks, and worker processes.
"""
