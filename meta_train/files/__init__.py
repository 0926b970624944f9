"""Files of runs and stores: digests, locks, what a user is told when they fail."""
