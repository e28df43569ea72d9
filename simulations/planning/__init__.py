"""`fedmops plan`: what a run will need, found out without its weights."""
