"""The default model: its words, its drawings, and how it is trained.

Only ``grammar`` is meant for the web tier; it imports nothing heavy. Everything else needs the
packages of the GPU image.
"""
