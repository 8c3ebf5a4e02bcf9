"""LTX-2: a transformer of two branches that predicts the velocities of a video's latents and of its sound's, together."""
