"""Reads objects of Google Cloud Storage and of S3, and of stores that speak their protocols."""
