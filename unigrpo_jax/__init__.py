"""Reinforcement learning for unified multimodal models: one policy that thinks in text and draws by flow."""

__version__ = "0.1.0"
