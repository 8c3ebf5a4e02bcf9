"""Autoencoders between media and latents, never trained here."""
