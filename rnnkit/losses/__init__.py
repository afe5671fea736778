"""Losses over sequences: a sum and a weight."""
