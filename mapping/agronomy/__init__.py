"""Agronomy beside the network: heat units, daily weather, NDVI peaks, climate envelope and the planting-window card.

Nothing is imported here: each module is imported by name, so that a command loads only what it uses.
"""
