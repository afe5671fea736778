"""Phases, the Learner and its callbacks."""
