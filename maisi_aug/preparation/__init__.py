"""Prepare a lab's CTs and label maps for training: found, checked, mapped, cut to the networks' grid, summarised."""
