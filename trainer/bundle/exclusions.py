"""What is never in a bundle, whatever its whitelist says: caches, repositories, environments, outputs and secrets, by
their names. No torch, controller only."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Iterable

KINDS: dict[str, tuple[str, ...]] = {
    "a cache": (
        "__pycache__", "*.pyc", "*.pyo", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".cache",
        ".coverage", ".ipynb_checkpoints", ".tox", ".nox", "*.egg-info", "node_modules",
    ),
    "a repository": (".git", ".hg", ".svn", ".jj"),
    "an environment": (".venv", ".ansible"),
    "a place of keys": (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".secrets"),
    "a key": (
        "*.pem", "*.key", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "id_rsa*", "id_dsa*",
        "id_ecdsa*", "id_ed25519*",
    ),
    "a file of passwords or tokens": (
        ".env*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".htpasswd", ".git-credentials", ".my.cnf",
        "kaggle.json", "hf_token*", ".hf_token*", ".vault*", "*vault[-_]pass", "*vault[-_]pass.*", "*vaultpass",
        "*vaultpass.*", "*vault[-_]password", "*vault[-_]password.*", "*vaultpassword", "*vaultpassword.*",
    ),
    "left by a system or an editor": (
        ".ds_store", "._*", "thumbs.db", "desktop.ini", "*~", ".*.sw[a-p]", ".#*", "[#]*[#]", ".nfs*", ".fuse_hidden*",
        ".idea", ".vscode",
    ),
}  # fmt: skip
FOLDERS: dict[str, tuple[str, ...]] = {
    "outputs of a training": ("outputs", "checkpoints"),
    "an environment": ("venv",),
}
TOP_FOLDERS: dict[str, tuple[str, ...]] = {
    "a host's own folder": (".stagegate", "releases", "backups"),
}


def _expression(table: dict[str, tuple[str, ...]]) -> re.Pattern[str]:
    """One expression for a whole table; the group that matched says which kind it is."""
    groups = ("|".join(translate(glob) for glob in globs) for globs in table.values())
    return re.compile("|".join(f"({group})" for group in groups))


_ANY, _FOLDER, _TOP = _expression(KINDS), _expression(FOLDERS), _expression(TOP_FOLDERS)


def kind(name: str, *, is_folder: bool, at_top: bool) -> str:
    """What a file or folder of this name is, empty when it may be packed. Capital letters make no difference."""
    name = name.casefold()
    tables = [(_ANY, KINDS), (_FOLDER, FOLDERS), (_TOP, TOP_FOLDERS)]
    for expression, table in tables[: 1 + is_folder + (is_folder and at_top)]:
        if match := expression.match(name):
            return list(table)[(match.lastindex or 1) - 1]
    return ""


def kind_of_path(components: Iterable[str]) -> str:
    """What a path is of which one component is never packed, empty when there is none."""
    for place, name in enumerate(components):
        if found := kind(name, is_folder=True, at_top=place == 0):
            return found
    return ""
