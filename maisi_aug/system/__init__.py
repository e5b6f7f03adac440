"""What touches the operating system: files and folders that appear whole or not at all, locks, and worker processes."""
