"""The Gradio Space: a map to click, a report to edit, rasters to bring along, on a precomputed example.

Nothing is imported here: the page opens without torch, which is loaded in the background.
"""
