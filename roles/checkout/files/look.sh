# After python.sh. Arguments: project root, Python to prefer, the program look.py, its arguments.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
cd "$1/code" 2> /dev/null && python=$(python_of "$2") || { echo '{}'; exit; }
shift 2
exec "$python" -c "$@"
