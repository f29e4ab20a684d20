# Arguments: project root, Python, the tree's id, its commit (or empty). Standard input: the tree as tar.gz.
# The tree is unpacked into a fresh folder, which then verifies and publishes itself; nothing half is left.
umask 022
releases=$1/releases
refuse() {
  echo "error: the source cannot be put into $releases on the host ($1); $2" >&2
  exit 4
}
command -v "$2" >/dev/null || refuse "there is no $2" "run playbooks/provision.yml"
said=$(mkdir -p "$releases" 2>&1) || refuse "$said" "make room there or correct its permissions"
incoming=$(mktemp -d "$releases/.incoming-XXXXXXXX" 2>&1) || refuse "$incoming" "make room there or correct its permissions"
trap 'rm -rf "$incoming"' EXIT
trap 'exit 7' HUP INT TERM PIPE
said=$(tar -xzf - --no-same-owner -C "$incoming" 2>&1) || # of a file that fitted in part it gives no reason
  refuse "$(printf '%s\n' "$said" | grep -m 1 'No space' || printf '%s\n' "$said" | head -n 1)" "make room there, or run it again"
chmod 755 "$incoming"
cd "$incoming" || exit 4
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
"$2" -m trainer --project-root "$1" source publish --expect "$3" --commit "$4" --json
