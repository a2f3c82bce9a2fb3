"""Training of whole networks, from random weights or from pretrained ones, on rendered views."""
