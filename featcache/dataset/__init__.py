"""Data sets: which images there are, what they show, and on which side of a split they stand."""
