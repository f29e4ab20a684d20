# After python.sh. Arguments: project root, Python to prefer, data.py.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
cd "$1/code" && python=$(python_of "$2") || exit 4
exec "$python" -c "$3" "$1"
