"""Decodes records in other processes and on other machines."""
