"""MAISI's networks at work.

Built from definitions, filled with weights, conditioned, sampled and decoded; the pipeline from a label map to a CT,
the networks that generate label maps, and weights from elsewhere.
"""
