"""The version of the whole: wheel, image and chart."""

__version__ = "0.1.0.dev0"
