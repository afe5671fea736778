"""Recurrent models out of parts."""
