"""Sharing caches and runs: remotes, push and pull, signatures, packs. Nothing here computes a feature."""
