"""`fedmops compress`: a pruned copy of a backbone, to serve as a backbone."""
