# After python.sh. Arguments: project root, Python, the id and the commit that the code should be (empty: any), look.py.
# Answers {"source_id", "commit"} when `code` is that and nobody touched it, {} otherwise. A host that is to be prepared
# yet has no Python of ours: another one looks, as far as that can run what is there.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
cd "$1/code" 2>/dev/null || { echo '{}'; exit; }
"$2" -m trainer source verify --expect "$3" --commit "$4" --json 2>/dev/null && exit
python=$(python_of "$2") && exec "$python" -c "$5" "$3" "$4"
echo '{}'
