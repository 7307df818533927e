"""Counts something of each record once, in all processes, and keeps the counts on the disk."""
