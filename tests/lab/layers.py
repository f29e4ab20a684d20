"""The lower layers of a host: the machine's own system without what is private to it, and a provider's Python."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

MINICONDA = "root/miniconda3"
SYSTEM_FOLDERS = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "sbin", "usr", "var"}
EMPTY_FOLDERS = {"boot", "dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp"}
# Private to the machine, or what would make a host of it differ from another machine's.
EMPTY_BELOW = ("etc/ssh", "etc/profile.d", "usr/local", "var/cache", "var/log", "var/mail", "var/spool", "var/tmp")
ABSENT_BELOW = ("etc/environment", "etc/gitconfig", "etc/pip.conf", "etc/resolv.conf", "etc/motd")
PYTHONS = ("bin/python", "bin/pip", "usr/bin/python", "usr/bin/pip", "usr/local/bin/python", "usr/local/bin/pip")
ROOT_SHELL = "# ~/.bashrc\n[ -z \"$PS1\" ] && return\nPS1='\\u@\\h:\\w# '\n"


def hide(layer: Path, name: str) -> None:
    """A whiteout: what lies below is not there."""
    path = layer / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def empty(layer: Path, name: str, mode: int) -> None:
    """An opaque folder: what lies below in it is not there."""
    path = layer / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def folder_like(layer: Path, name: str) -> None:
    """The folders above `name` with the modes that they have on this machine."""
    for parent in reversed(Path(name).parents):
        if not (layer / parent).exists():
            (layer / parent).mkdir()
            (layer / parent).chmod(stat.S_IMODE((Path("/") / parent).stat().st_mode))


def mask_machine(layer: Path) -> None:
    """Make the layer over the machine's root that leaves the operating system and nothing else."""
    layer.mkdir()
    layer.chmod(0o755)
    for name in EMPTY_FOLDERS | {path.name for path in Path("/").iterdir()}:
        path = Path("/") / name
        if name in EMPTY_FOLDERS:
            empty(layer, name, {"tmp": 0o1777, "root": 0o700}.get(name, 0o755))
        elif not path.is_symlink() and name not in SYSTEM_FOLDERS:
            hide(layer, name)
    for name in EMPTY_BELOW:
        folder_like(layer, name)
        empty(layer, name, 0o1777 if name.endswith("tmp") else 0o755)
    for name in ABSENT_BELOW:
        if os.path.lexists(Path("/") / name):
            folder_like(layer, name)
            hide(layer, name)
    for name in ("bin", "lib", "sbin"):
        (layer / "usr/local" / name).mkdir(exist_ok=True)


def python_programs() -> list[str]:
    """The machine's system Pythons and pips, relative to the root."""
    found = []
    for prefix in PYTHONS:
        folder, name = (Path("/") / prefix).parent, Path(prefix).name
        if not folder.is_symlink():
            found += [str(path)[1:] for path in folder.glob(f"{name}*")]
    return sorted(set(found))


def write_provider_bin(layer: Path) -> None:
    """Make the layer over this interpreter's own installation in which its programs work at the provider's path."""
    version = sysconfig.get_python_version()
    library = f"{sys.base_prefix}/lib".encode()
    # Where the interpreter looks for its shared library, as long as the old path, which the host does not have.
    moved = b"$ORIGIN/../lib".ljust(len(library), b"\0")
    (layer / "bin").mkdir(parents=True)
    for path in (Path(sys.base_prefix) / "bin").iterdir():
        if not path.name.startswith(("python", "pip")):
            hide(layer, f"bin/{path.name}")
            continue
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if content.startswith(b"#!"):
            content = f"#!/{MINICONDA}/bin/python{version}\n".encode() + content.partition(b"\n")[2]
        (layer / "bin" / path.name).write_bytes(content.replace(library + b"\0", moved + b"\0"))
        (layer / "bin" / path.name).chmod(0o755)


def provider_layers(mask: Path) -> list[tuple[str, list[Path]]]:
    """(where, lower layers from the top) of the provider's Python: this run's interpreter with its site-packages.

    Nothing is copied: torch and the rest are those of the environment that the tests run in. `mask` is the layer that
    write_provider_bin made.
    """
    site = Path(sysconfig.get_path("purelib"))
    inside = site.relative_to(sys.prefix)
    return [(MINICONDA, [mask, Path(sys.base_prefix)]), (f"{MINICONDA}/{inside}", [site])]


def lower_option(layers: Iterable[Path]) -> str:
    return ":".join(str(layer).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for layer in layers)
