"""FLUX.1: a transformer of double and single blocks that predicts the velocity of a latent, upon a text."""
