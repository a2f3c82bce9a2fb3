"""Networks that Keras does not have, written here of its own layers."""
