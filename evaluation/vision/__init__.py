"""Images against text and labels: zero-shot classes, retrieval, segmentation by language, and probes on embeddings.

Any AgriCLIP folder and any CLIP or SigLIP checkpoint goes through the same `Encoder`, so that every number has a fair
neighbour. Nothing heavy is imported here.
"""
