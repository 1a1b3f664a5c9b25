"""Scores, baselines and descriptions of a model: every number printed comes from here, with a baseline beside it.

Nothing is imported here: each module is imported by name, so that a command loads only what it uses.
"""
