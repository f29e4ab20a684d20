# python_of WISHED: a Python of this host that runs what a bundle carries: the wished one, else the first that is found.
python_of() {
  for candidate in "$1" python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 \
    /root/miniconda3/bin/python3 /opt/conda/bin/python3; do
    "$candidate" -c 'import fcntl, hashlib, json, sys, zipimport, zlib; sys.exit(sys.version_info < (3, 8))' \
      < /dev/null > /dev/null 2>&1 && printf '%s\n' "$candidate" && return
  done
  return 1
}
