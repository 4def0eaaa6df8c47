"""Work on many machines, by engines that exist."""
