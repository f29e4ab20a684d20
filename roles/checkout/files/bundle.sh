# After python.sh. Arguments: the folder with the upload (empty: none), project root, Python to prefer, words of the
# program. Standard input: the program, one file. Upload and program are removed whatever the end is.
umask 022
refuse() {
  echo "error: $1" >&2
  exit 4
}
folder=$1 wished=$3 where=$2/releases
[ -d "$where" ] || where=${TMPDIR:-/tmp}
[ -n "$folder" ] || folder=$(mktemp -d "$where/.incoming-XXXXXXXX" 2>&1) ||
  refuse "nothing can be put into $where on the host ($folder); make room there or correct its permissions"
trap 'rm -rf "$folder"' EXIT
trap 'exit 7' HUP INT TERM PIPE
python=$(python_of "$wished") ||
  refuse "the host has no Python 3.8 or newer ($wished, python3 and others were tried); install one, or name it with checkout_python"
cd "$folder" || exit 4
said=$({ cat > program.pyz; } 2>&1) ||
  refuse "nothing can be put into $folder on the host ($said); make room there or correct its permissions"
shift 3
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
"$python" program.pyz "$@"
