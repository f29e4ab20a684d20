# Arguments: project root, Python, the id and the commit that the code should be (empty: any).
# Answers {"source_id", "commit"} when `code` is that and nobody touched it, {} otherwise.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
cd "$1/code" 2>/dev/null &&
  "$2" -m trainer source verify --expect "$3" --commit "$4" --json 2>/dev/null ||
  echo '{}'
