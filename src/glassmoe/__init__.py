"""glassmoe: language models that can be read from the inside."""

__version__ = "0.1.0"
