"""Long work: a list of items handed out to workers that stay open.

An engine is one way to do it, in this process or in others; all promise the same. What an item becomes depends on the
item alone, so that it may be handed out again when a worker is lost; results come back to the process that handed the
items out, the driver, which alone writes down what is done.
"""
