"""The keyword spotter: a network that classifies which digit has just ended in a stream."""
