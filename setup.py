# SPDX-License-Identifier: Apache-2.0
"""The repository root is the ament_python package cosmos_reason_node."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "cosmos_reason_node"
SHARED_FOLDERS = ("launch", "config", "models/nano")


def shared_files() -> list[tuple[str, list[str]]]:
    """Files that go to share/cosmos_reason_node, folder by folder."""
    shared = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml", "LICENSE"]),
    ]
    for folder in SHARED_FOLDERS:
        files = [str(path) for path in sorted(Path(folder).glob("*")) if path.is_file()]
        if files:
            shared.append((f"share/{NAME}/{folder}", files))
    return shared


setup(
    name=NAME,
    version="0.1.0",
    description="ROS 2 node that answers questions about camera streams with a video reasoning model",
    maintainer="cosmos_reason maintainers",
    maintainer_email="maintainers@cosmos-reason.example.com",
    license="Apache-2.0",
    # `training`, `benchmarks` and `tests` run from the checkout and are not part of the installed package.
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={f"{NAME}.demo": ["*.css", "*.js"]},
    data_files=shared_files(),
    # Python dependencies are pinned in requirements/, not here: colcon does not install them.
    install_requires=["setuptools"],
    python_requires=">=3.11",
    zip_safe=False,
    entry_points={
        "console_scripts": [
            f"reason_node = {NAME}.ros.node:main",
            f"replay = {NAME}.ros.replay:main",
        ],
    },
)
