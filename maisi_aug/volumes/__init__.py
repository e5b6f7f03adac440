"""Volumes as arrays with a place in space: grids, image files, orientation, resampling, parts of masks, the body in a CT."""
