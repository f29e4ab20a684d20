# The lab's first process, outside of its namespaces: starts them, waits for SIGTERM or the end of its standard input,
# kills everything in them at once and removes what namespaces do not: control groups.
# Arguments: the folder of the lab, the control groups of the lab.
set -u
if [ "${1:-}" = inside ]; then
  set -e
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir /run/lab /run/cp
  touch /run/lab/net
  mount --bind /proc/self/ns/net /run/lab/net
  # The home that the account database names, not HOME, is where ssh looks for its files.
  mount --bind "$2/passwd" /etc/passwd
  ip link set lo up
  ip link add lab address "$GATEWAY_MAC" type bridge
  ip address add "$GATEWAY/16" dev lab
  ip link set lab up
  mkfifo /run/lab/fifo
  echo ready
  exec 0<> /run/lab/fifo > /dev/null 2>&1
  while :; do read -r _; done
fi
folder=$1
shift
# Whatever ends this process, even a KILL, ends `unshare`, which takes the lab along.
setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child=KILL --mount-proc \
  bash "${BASH_SOURCE[0]}" inside "$folder" < /dev/null &
child=$!
exec > /dev/null
finish() {
  trap '' TERM INT HUP
  # With the first process goes everything; `unshare` ends when nothing is left.
  kill -9 $(cat "/proc/$child/task/$child/children") 2> /dev/null
  for group in "${groups[@]}"; do
    # What is frozen cannot be killed (first version), or not be waited for by its frozen parent.
    find "$group" -name freezer.state -exec sh -c 'echo THAWED > "$1"' sh {} \; 2> /dev/null
    find "$group" -name cgroup.freeze -exec sh -c 'echo 0 > "$1"' sh {} \; 2> /dev/null
  done
  wait "$child"
  for group in "${groups[@]}"; do
    for _ in $(seq 100); do
      find "$group" -depth -type d -exec rmdir {} \; 2> /dev/null
      [ -d "$group" ] || break
      sleep 0.05
    done
  done
  exit 0
}
groups=("$@")
trap finish TERM
trap '' INT HUP
read -r _
finish
