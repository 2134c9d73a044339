"""kdcdiff: the library under the executable book on distilled diffusion models. Importing it imports nothing."""

__version__ = "0.1.0"
__all__ = ["__version__"]
