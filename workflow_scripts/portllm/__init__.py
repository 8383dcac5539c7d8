"""The library of the PortLLM workflow: what the command-line programs beside it share."""

__version__ = "0.1.0"
