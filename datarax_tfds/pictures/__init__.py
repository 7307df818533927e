"""Pictures of batches, and of where their rows are. They need matplotlib, an extra."""
