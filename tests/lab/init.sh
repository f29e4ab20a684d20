# PID 1 of a lab host, started by host.py in namespaces of its own: makes the machine's view of itself, then reaps
# orphans. Environment: ROOT (the mounted root file system), LAB (the lab's tmpfs), NAME, ADDRESS, MAC, GATEWAY, GATEWAY_MAC, BOOT_ID.
set -eu
if [ "${1:-}" != booted ]; then
  mount -t proc proc "$ROOT/proc"
  mount --bind "$BOOT_ID" "$ROOT/proc/sys/kernel/random/boot_id"
  mount -t sysfs -o ro sysfs "$ROOT/sys"
  mount -t tmpfs -o mode=755 tmpfs "$ROOT/sys/fs/cgroup"
  # The host sees its own group's limits, as a container does; a kernel without the controller shows an empty folder.
  for kind in memory freezer; do
    grep -q "^[0-9]*:$kind:" /proc/self/cgroup || continue
    mkdir "$ROOT/sys/fs/cgroup/$kind"
    mount -t cgroup -o "ro,$kind" cgroup "$ROOT/sys/fs/cgroup/$kind" || rmdir "$ROOT/sys/fs/cgroup/$kind"
  done
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then mount -t cgroup2 -o ro cgroup2 "$ROOT/sys/fs/cgroup" || true; fi
  mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
  mkdir "$ROOT/dev/pts" "$ROOT/dev/shm"
  while read -r device minor; do mknod -m 666 "$ROOT/dev/$device" c "${minor%:*}" "${minor#*:}"; done <<'NODES'
null 1:3
zero 1:5
full 1:7
random 1:8
urandom 1:9
tty 5:0
NODES
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$ROOT/dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
  ln -s pts/ptmx "$ROOT/dev/ptmx"
  ln -s /proc/self/fd "$ROOT/dev/fd"
  ln -s /proc/self/fd/0 "$ROOT/dev/stdin"
  ln -s /proc/self/fd/1 "$ROOT/dev/stdout"
  ln -s /proc/self/fd/2 "$ROOT/dev/stderr"
  mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
  mkdir -p "$ROOT/run/sshd" "$ROOT/run/lock"
  cp "$LAB/init.sh" "$ROOT/run/init.sh"
  # `netns 1` is this process: the pid is read in this pid namespace, the device is made in the lab's network.
  nsenter --net="$LAB/net" ip link add "v$NAME" type veth peer name eth0 address "$MAC" netns 1
  nsenter --net="$LAB/net" ip link set "v$NAME" master lab up
  nsenter --net="$LAB/net" ip neighbour replace "$ADDRESS" lladdr "$MAC" dev lab nud permanent
  hostname "$NAME"
  cd "$ROOT"
  pivot_root . .
  umount -l .
  cd /
  exec -a init bash /run/init.sh booted
fi
ip link set lo up
ip address add "$ADDRESS/16" dev eth0
ip link set eth0 up
# Fixed neighbours: where a link is cut, nothing answers, as behind a router, and no "no route to host" comes from ARP.
ip neighbour replace "$GATEWAY" lladdr "$GATEWAY_MAC" dev eth0 nud permanent
mkfifo /run/init.fifo
env -i PATH="$PATH" HOME=/root /usr/sbin/sshd -E /var/log/sshd.log
echo ready
exec 0<> /run/init.fifo > /dev/null 2>&1
set +e
while :; do read -r _; done
