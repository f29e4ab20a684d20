# Arguments: project root, Python, URL, commit, files of the provider that set a proxy. Standard input: export_commit.py.
command -v "$2" >/dev/null || { echo "error: the host has no $2; run playbooks/provision.yml" >&2; exit 4; }
umask 022
root=$1 python=$2
shift 2
PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 exec "$python" - "$root" "$@"
