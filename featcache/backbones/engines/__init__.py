"""Engines: from pixels to features. One contract (contract.py), a module an engine, and the choice between them."""
