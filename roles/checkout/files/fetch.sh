# Arguments: project root, Python, URL, commit. Standard input: export_commit.py.
command -v "$2" >/dev/null || { echo "error: the host has no $2; run playbooks/provision.yml" >&2; exit 4; }
umask 022
PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 exec "$2" - "$1" "$3" "$4"
