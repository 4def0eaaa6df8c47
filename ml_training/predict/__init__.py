"""Folders without end: walked, answered and written down in bounded memory, whatever interrupts."""
