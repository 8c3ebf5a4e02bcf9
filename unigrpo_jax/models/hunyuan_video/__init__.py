"""HunyuanVideo, and SkyReels-V1 from a picture: a transformer that predicts the velocity of a video's latents."""
