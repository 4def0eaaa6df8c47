"""Digits in a stream: a network that hears sound as it comes and says where a digit has just ended."""
