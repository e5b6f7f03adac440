"""MAISI's networks at work: built, filled with weights, conditioned, sampled, decoded; the pipeline from a label map to a CT, and the mask networks."""
