"""An unsupported torch or diffusers is named, with the range that is supported."""

from importlib import metadata

import pytest

import accel
from accel import versions


def installed(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    """Make the metadata say that these versions are installed; None means absent."""

    def version(name: str) -> str:
        if found[name] is None:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(versions.metadata, "version", version)


@pytest.mark.parametrize("torch", ["2.6.0", "2.13.0", "2.13.0+cu130", "2.7.0a0+79aa17489c.nv25.4"])
def test_supported_versions_pass(monkeypatch, torch):
    installed(monkeypatch, torch=torch, diffusers="0.42.1")
    versions.check()


@pytest.mark.parametrize(
    ("torch", "diffusers", "said"),
    [
        ("2.5.1", "0.42.1", [r"torch<2\.14,>=2\.6", r"torch 2\.5\.1 is installed"]),
        ("2.14.0", "0.42.1", [r"torch<2\.14,>=2\.6", r"torch 2\.14\.0 is installed"]),
        ("2.14.0.dev20260901", "0.42.1", [r"torch 2\.14\.0\.dev20260901 is installed"]),
        ("2.13.0", "0.41.0", [r"diffusers<0\.43,>=0\.42", r"diffusers 0\.41\.0 is installed"]),
        ("2.13.0", "0.43.0", [r"diffusers 0\.43\.0 is installed", r"pip install \"diffusers<0"]),
        ("2.13.0", None, [r"diffusers<0\.43,>=0\.42, which is not installed", r"pip install"]),
    ],
)
def test_unsupported_versions_are_named(monkeypatch, torch, diffusers, said):
    installed(monkeypatch, torch=torch, diffusers=diffusers)
    with pytest.raises(ImportError) as error:
        versions.check()
    for pattern in said:
        error.match(pattern)


def test_ranges_are_those_of_the_installed_package():
    required = {line.split(";")[0].strip() for line in metadata.requires("accel") or []}
    for name, supported in versions.SUPPORTED.items():
        assert f"{name}{supported}" in required
    assert metadata.version("accel") == accel.__version__
