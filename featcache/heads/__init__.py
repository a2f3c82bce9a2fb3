"""Heads: small networks trained on cached features, by SGD in Gram space or through Keras."""
