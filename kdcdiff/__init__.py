"""kdcdiff: the small library under the executable book on distilled diffusion models.

Importing it costs nothing but the torchvision repair (see `kdcdiff._torchvision`); every room is imported by
name.
"""

from kdcdiff import _torchvision

__version__ = "0.1.0"
__all__ = ["__version__"]

_torchvision.install()
