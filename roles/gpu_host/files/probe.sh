# Reads a host and prints what it finds. It changes nothing, needs no Python and ends with status 0.
# Arguments: project root, venv folder, the interpreter to try first (may be empty), seconds for nvidia-smi,
# seconds for the import of torch; then "marker", "variable" or "disk", each followed by its value: a path and a
# name of an environment variable that tell a provider, and a folder that may be a data disk.
# Every line of the answer is "gpu_host|KEY|TEXT", so that login noise can be told from it; a key that
# comes again makes a list. An answer without "gpu_host|end" was cut off.
LC_ALL=C
export LC_ALL
project_root=$1
venv=$2
given_python=$3
smi_seconds=${4:-30}
torch_seconds=${5:-90}
if [ $# -ge 5 ]; then shift 5; else shift $#; fi
tab=$(printf '\t')

say() { printf 'gpu_host|%s|%s\n' "$1" "$2"; }

say_lines() { # KEY; the text comes from stdin, at most 40 lines
    lines_left=40
    while IFS= read -r text || [ -n "$text" ]; do
        [ "$lines_left" -gt 0 ] || break
        say "$1" "$text"
        lines_left=$((lines_left - 1))
    done
}

# bounded SECONDS COMMAND...: sets rc ("timeout" when it did not end), fills $scratch/out and $scratch/err.
# A process that hangs in the driver survives SIGKILL, and whoever waits for it hangs as well ("timeout"
# of coreutils too). So a runner waits for the command, and the guard ends the runner.
bounded() {
    limit=$1
    shift
    : >"$scratch/out"
    : >"$scratch/err"
    echo timeout >"$scratch/rc"
    (
        "$@" </dev/null >"$scratch/out" 2>"$scratch/err" &
        echo $! >"$scratch/child"
        wait $!
        echo $? >"$scratch/rc"
    ) >/dev/null 2>&1 &
    runner=$!
    (
        trap 'kill "$nap"; exit 0' TERM
        sleep "$limit" &
        nap=$!
        wait "$nap"
        kill -9 "$runner"
        kill -9 "$(cat "$scratch/child")"
    ) >/dev/null 2>&1 &
    guard=$!
    wait "$runner" 2>/dev/null
    kill "$guard" 2>/dev/null
    rc=$(cat "$scratch/rc")
}

# /dev/shm first: it works when the disk is full or has no inode left.
make_scratch() {
    for folder in /dev/shm "${TMPDIR:-/tmp}" /tmp /var/tmp; do
        scratch=$(mktemp -d "$folder/gpu_host.XXXXXX" 2>/dev/null) && return 0
    done
    scratch=
    return 1
}

read_system() {
    say system.kernel "$(uname -sr 2>/dev/null)"
    say system.machine "$(uname -m 2>/dev/null)"
    say system.os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"' | head -n 1)"
    contained=no
    if [ -e /.dockerenv ] || [ -e /run/.containerenv ] || [ -n "${container:-}" ]; then contained=yes; fi
    grep -qE 'docker|kubepods|containerd|lxc|libpod' /proc/1/cgroup 2>/dev/null && contained=yes
    tr '\0' '\n' 2>/dev/null </proc/1/environ | grep -q '^container=' && contained=yes
    say system.container "$contained"
    say system.cpus "$(nproc 2>/dev/null)"
}

# Limits of this process's cgroup and of every one above it; the smallest holds.
walk_cgroup() { # MOUNT RELATIVE_FOLDER FILE KEY
    relative=${2%/}
    while :; do
        if [ -r "$1$relative/$3" ]; then
            say "$4" "$(tr '\n' ' ' <"$1$relative/$3" 2>/dev/null)"
        fi
        [ -n "$relative" ] || break
        relative=${relative%/*}
    done
}

read_limits() {
    sed -n 's/^MemTotal: */memory.total /p; s/^MemAvailable: */memory.available /p' /proc/meminfo 2>/dev/null |
        while read -r key amount unit; do say "$key" "$amount $unit"; done
    while IFS=: read -r _ controllers folder; do
        case ",$controllers," in
        ,,)
            walk_cgroup /sys/fs/cgroup "$folder" memory.max memory.limit
            walk_cgroup /sys/fs/cgroup "$folder" cpu.max cpu.max
            ;;
        *,memory,*) walk_cgroup /sys/fs/cgroup/memory "$folder" memory.limit_in_bytes memory.limit ;;
        *,cpu,*) walk_cgroup /sys/fs/cgroup/cpu "$folder" cpu.cfs_quota_us cpu.quota ;;
        esac
    done 2>/dev/null </proc/self/cgroup
}

find_smi() {
    command -v nvidia-smi && return 0
    for path in /usr/bin /usr/local/nvidia/bin /usr/lib/wsl/lib /opt/bin; do
        [ -x "$path/nvidia-smi" ] && echo "$path/nvidia-smi" && return 0
    done
    return 1
}

ask_smi() { # SECONDS KEY ARGUMENTS...
    seconds=$1
    key=$2
    shift 2
    bounded "$seconds" "$smi" "$@"
    say "$key.rc" "$rc"
    head -n 40 "$scratch/out" | say_lines "$key.out"
    head -n 5 "$scratch/err" | say_lines "$key.err"
}

# compute_cap is a query of its own because drivers before 510 refuse the whole query for it.
read_gpu() {
    say gpu.module "$(sed -n 's/^NVRM version: *//p' /proc/driver/nvidia/version 2>/dev/null)"
    smi=$(find_smi) || smi=
    say gpu.smi "$smi"
    [ -n "$smi" ] || return 0
    ask_smi "$smi_seconds" smi.query --format=csv,noheader,nounits \
        --query-gpu=index,name,driver_version,memory.total,memory.free,mig.mode.current
    [ "$rc" = 0 ] || return 0
    grep -q 'Enabled$' "$scratch/out" && has_mig=yes || has_mig=no
    ask_smi "$smi_seconds" smi.capability --query-gpu=index,compute_cap --format=csv,noheader
    ask_smi "$smi_seconds" smi.header
    [ "$has_mig" = no ] || ask_smi "$smi_seconds" smi.list -L
}

read_disk() { # NAME FOLDER
    existing=$2
    case $existing in "~"*) existing=${HOME:-/root}${existing#"~"} ;; esac
    asked=$existing
    while [ ! -e "$existing" ] && [ -n "$existing" ] && [ "$existing" != / ] && [ "$existing" != . ]; do
        existing=$(dirname "$existing")
    done
    writable=no
    [ -d "$existing" ] && [ -w "$existing" ] && writable=yes
    say "disk.$1.asked" "$asked"
    say "disk.$1.existing" "$existing"
    say "disk.$1.writable" "$writable"
    bounded 10 df -kP "$existing"
    say_lines "disk.$1.blocks" <"$scratch/out"
    bounded 10 df -iP "$existing"
    say_lines "disk.$1.inodes" <"$scratch/out"
}

# Names of environment variables only: values may be secrets. sshd starts sessions without those of PID 1.
has_variable() {
    env | grep -q "^$1=" && return 0
    tr '\0' '\n' 2>/dev/null </proc/1/environ | grep -q "^$1="
}

read_provider() { # KIND VALUE ...
    disks=0
    while [ $# -ge 2 ]; do
        case $1 in
        marker) [ -e "$2" ] && say provider.marker "$2" ;;
        variable) has_variable "$2" && say provider.variable "$2" ;;
        disk)
            disks=$((disks + 1))
            say "disk.data$disks.listed" "$2"
            read_disk "data$disks" "$2"
            ;;
        esac
        shift 2
    done
}

read_venv() {
    say venv.path "$venv"
    if [ ! -e "$venv" ]; then state=absent
    elif [ -f "$venv/pyvenv.cfg" ] && [ -x "$venv/bin/python" ]; then state=venv
    elif [ -f "$venv/pyvenv.cfg" ]; then state=broken
    elif [ -d "$venv" ] && [ -z "$(ls -A "$venv" 2>/dev/null)" ]; then state=empty
    else state=other; fi
    say venv.state "$state"
    grep -qi '^include-system-site-packages *= *true' "$venv/pyvenv.cfg" 2>/dev/null && say venv.system_site yes
    [ -f "$venv/gpu_host/stamp" ] && head -n 1 "$venv/gpu_host/stamp" | say_lines venv.stamp
}

# Fields: version, module venv with ensurepip, pip, torch, torch's CUDA, prefix, prefix of the interpreter below it,
# where torch lies. torch is read, not imported. Plain text, as python3-minimal has no json.
python_questions='
import os, re, sys
from importlib.util import find_spec
def found(name):
    try:
        return find_spec(name)
    except Exception:
        return None
def word(test):
    return "yes" if test else "no"
torch, cuda, place = "", "", ""
spec = found("torch")
if spec is not None and spec.origin:
    try:
        text = open(os.path.join(os.path.dirname(spec.origin), "version.py")).read()
        torch = "".join(re.findall(r"(?m)^__version__[^=]*= *.([^\x27\"]+)", text)[:1])
        cuda = "".join(re.findall(r"(?m)^cuda[^=]*= *[\x27\"]([0-9.]+)", text)[:1]) or "none"
        place = "own" if spec.origin.startswith(os.path.join(sys.prefix, "")) else "outside"
    except Exception:
        pass
print("\t".join(["%d.%d.%d" % sys.version_info[:3], word(found("venv") and found("ensurepip")),
                 word(found("pip")), torch, cuda, sys.prefix, sys.base_prefix, place]))
'

# Whether torch works there: "yes", "no" (no GPU), or the end of what it said. An import takes seconds and may hang
# on a sick driver, so it is asked only while the venv is not finished.
try_torch() { # PATH
    bounded "$torch_seconds" "$1" -I -c 'import torch; print("gpu_host=" + ("yes" if torch.cuda.is_available() else "no"))'
    sees=$(sed -n 's/^gpu_host=//p' "$scratch/out" | tail -n 1)
    if [ "$rc" = timeout ]; then sees="no answer in $torch_seconds s"; fi
    [ -n "$sees" ] || sees="status $rc: $(tail -n 1 "$scratch/err" | tr '\t' ' ' | cut -c 1-120)"
}

ask_python() { # ORIGIN PATH; status 0 when it answered
    case "$asked_pythons" in *"|$2|"*) return 1 ;; esac
    asked_pythons="$asked_pythons|$2|"
    bounded 20 "$2" -I -c "$python_questions"
    # pyenv's shim of a version that is not switched on; the versions themselves are asked later.
    case $2 in */shims/*) [ "$rc" = 0 ] || return 1 ;; esac
    if [ "$rc" != 0 ]; then
        say python.failed "$1$tab$2$tab$rc$tab$(tail -n 1 "$scratch/err" | cut -c 1-200)"
        return 1
    fi
    answer=$(tail -n 1 "$scratch/out")
    prefix=$(printf '%s' "$answer" | cut -f 6)
    # python3 and python3.12 of one folder are one Python.
    case "$asked_prefixes" in *"|$prefix|"*) return 0 ;; esac
    asked_prefixes="$asked_prefixes|$prefix|"
    sees=
    if [ -z "$stamped" ] && [ -n "$(printf '%s' "$answer" | cut -f 4)" ] &&
        [ "$prefix" = "$(printf '%s' "$answer" | cut -f 7)" ]; then
        try_torch "$2"
    fi
    path=$2
    case $path in */shims/*) path=$prefix/bin/python3 ;; esac
    say python "$1$tab$path$tab$answer$tab$sees"
}

# PATH as a login shell makes it: conda and pyenv are often put there by a profile. Profiles may print or hang.
login_path() {
    bounded 10 "${SHELL:-/bin/sh}" -lc 'printf "\ngpu_host_path=%s\n" "$PATH"'
    sed -n 's/^gpu_host_path=//p' "$scratch/out" | tail -n 1
}

ask_folders() { # ORIGIN FOLDER...
    origin=$1
    shift
    for folder in "$@"; do
        for name in python3 python3.14 python3.13 python3.12 python3.11; do
            [ -x "$folder/$name" ] && ask_python "$origin" "$folder/$name"
        done
    done
}

ask_path() { # ORIGIN PATH_VARIABLE
    IFS=:
    set -f
    # shellcheck disable=SC2086 # the words are what is wanted
    set -- "$1" $2
    set +f
    unset IFS
    ask_folders "$@"
}

# Conda installations and their environments, pyenv's versions, folders that images put a Python in.
ask_known() {
    home=${HOME:-/root}
    for base in "$home" /root /opt /usr/local; do
        for name in miniconda3 miniconda anaconda3 conda miniforge3 mambaforge; do
            [ -d "$base/$name" ] && ask_folders conda "$base/$name/bin" "$base/$name"/envs/*/bin
        done
    done
    ask_folders pyenv "${PYENV_ROOT:-$home/.pyenv}"/versions/*/bin
    ask_folders known /usr/local/bin /usr/bin /venv/main/bin /opt/venv/bin
}

read_pythons() {
    asked_pythons=
    asked_prefixes=
    stamped=
    [ ! -s "$venv/gpu_host/stamp" ] || stamped=yes
    if [ "$state" = venv ]; then
        ask_python venv "$venv/bin/python" && [ -n "$stamped" ] && return 0
    fi
    [ -z "$given_python" ] || ask_python given "$given_python"
    ask_path path "$PATH"
    ask_path login "$(login_path)"
    ask_known
}

echo
say begin 1
read_system
read_limits
if make_scratch; then
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 1' HUP INT TERM
    say scratch "$scratch"
    read_gpu
    read_disk project_root "$project_root"
    read_disk venv "$venv"
    read_disk system /
    read_provider "$@"
    read_venv
    read_pythons
else
    say scratch ''
fi
say end 1
exit 0
