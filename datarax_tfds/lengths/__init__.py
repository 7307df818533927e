"""Sorts records into buckets by length: counts their lengths, and cuts batches to few shapes."""
