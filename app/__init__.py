"""Darkroom: push-and-forget image generation.

Importing any module of this package opens no connection and reads no setting, and nothing that the
web tier imports pulls in torch: a test holds both.
"""

__version__ = "0.1.0"
