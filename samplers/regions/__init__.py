"""Region-adaptive sampling: which tokens are computed, and how the others are carried along."""
