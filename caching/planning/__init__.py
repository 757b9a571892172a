"""Planning: which steps to compute, and what linear rule joins them, from a few full runs."""
