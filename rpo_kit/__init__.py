"""rpo_kit: Reflective Personalization Optimization, step by step, in notebooks and thin helpers."""

__version__ = "0.1.0"
