"""Studies to georeferenced maps: prediction by row bands, scenarios, change, novelty, areas and the report.

Nothing is imported here: each module is imported by name, so that a command loads only what it uses.
"""
