"""Frozen networks that read a text, before anything is drawn."""
