"""Batches of sequences, and what makes them."""
