"""Volumes as arrays with a place in space.

Grids, orientation, image files, resampling, parts of masks, and the body in a CT.
"""
