"""Long work: a list of items handed out to workers that stay open.

An engine is one way to do it, in this process or in others; all promise the same. What an item becomes depends on the
item alone, so that it may be handed out again when a worker is lost; results come back to the process that handed the
items out, the driver, which alone writes down what is done.

In the order in which to read: ``work`` (what a worker and an engine are, the loop that every worker runs, and the
engine of this process), ``crew`` (the driver of workers in other processes, and what each runs; a ``Hand`` is a
worker as the driver sees it), ``processes`` (the engine of one machine), ``cores``, and ``mapping`` (a function over
many items, which is how everything but cohorts uses an engine). ``integrations.ray`` has the engine of a cluster.
"""
