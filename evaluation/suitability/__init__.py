"""What a suitability model is worth: on places it has not seen, without parts of its input, under other climates.

Nothing is imported here: each module is imported by name, so that the command line answers at once.
"""
