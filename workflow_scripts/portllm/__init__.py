"""The library behind the stage programs of the PortLLM workflow."""

__version__ = "0.1.0"
