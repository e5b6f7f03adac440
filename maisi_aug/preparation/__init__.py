"""From a lab's CTs and label maps to training cases: found, checked, mapped, cut to the networks' grid, summed up."""
