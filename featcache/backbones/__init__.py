"""Backbones: networks without their top, frozen, each with its own preprocessing and weights."""
