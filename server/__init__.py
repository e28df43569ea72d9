"""The server role: a Flower ServerApp that merges mixtures. Imports no torch."""
