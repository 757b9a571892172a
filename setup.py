"""Maps the top-level folders to `accel.*`; the rest of the build is in `pyproject.toml`."""

from setuptools import find_packages, setup

FOLDERS = ("caching", "samplers", "sparse_attn", "distill", "pipelines", "app")

package_dir = {"accel": "accel"} | {f"accel.{folder}": folder for folder in FOLDERS}
packages = [
    name
    for top, folder in package_dir.items()
    for name in [top, *(f"{top}.{sub}" for sub in find_packages(folder))]
]
weights = [
    f"tiny/**/*.{suffix}" for suffix in ("safetensors", "json", "jsonl", "txt", "model", "md")
]

setup(
    package_dir=package_dir,
    packages=packages,
    package_data={"accel": ["py.typed"], "accel.pipelines": weights},
    include_package_data=False,
)
