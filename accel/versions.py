"""The version of this package, and the versions of torch and diffusers it works with."""

from importlib import metadata

from packaging.specifiers import SpecifierSet

__version__ = "0.1.0"

SUPPORTED = {"torch": SpecifierSet(">=2.6,<2.14"), "diffusers": SpecifierSet(">=0.42,<0.43")}


def check() -> None:
    """Raise `ImportError` if torch or diffusers is missing or outside the supported range.

    Only the metadata is read, so that an unsuitable version is named before it is imported.
    Local builds (`2.13.0+cu130`) and pre-releases within the range are accepted.
    """
    for name, supported in SUPPORTED.items():
        need = f'install a supported one with: pip install "{name}{supported}"'
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ImportError(
                f"accel needs {name}{supported}, which is not installed; {need}"
            ) from None
        if not supported.contains(found, prereleases=True):
            raise ImportError(
                f"accel needs {name}{supported}, but {name} {found} is installed; {need}"
            )
