#!/usr/bin/env bash
# A SLURM cluster on this machine, on the loopback interface: a controller, and nodes that are each
# a partition of the same name. "cpu" has no GPU, the others have four fake ones. The daemons are
# the real ones; nodes advertise more cores and memory than the machine has, since what the tests
# run on them is small. Needs root (slurmd starts jobs) and Debian's slurmctld slurmd slurm-client
# munge.
#
#   mini_slurm.sh start|stop                      the whole cluster
#   mini_slurm.sh stop-controller|start-controller
#   mini_slurm.sh fail-node|start-node NAME       a node that loses its power, and that boots again
#
# MINI_SLURM names its directory, MINI_SLURM_PORT the first of the few ports that it uses.
set -euo pipefail

root=${MINI_SLURM:-/tmp/mini_slurm}
port=${MINI_SLURM_PORT:-26810}
host=$(hostname -s)
nodes=(cpu gpu gpu2 gpu3 gpu4 gpu5)
# The executor plugin hides SLURM_CONF from the srun inside of a job: only the usual path works.
usual=/etc/slurm/slurm.conf

fail() {
    echo "mini_slurm: $*" >&2
    exit 1
}

# until_true SECONDS COMMAND...: try again and again.
until_true() {
    local tries=$(($1 * 5))
    shift
    for ((; tries > 0; tries--)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    return 1
}

# The process of a daemon, by the file in which it wrote its id.
process() {
    local pid
    pid=$(cat "$root/run/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null && echo "$pid"
}

gone() { ! process "$1"; }

end() {
    local pid
    pid=$(process "$1") || return 0
    kill "$pid"
    until_true 10 gone "$1" || kill -9 "$pid"
    rm -f "$root/run/$1.pid"
}

configure() {
    mkdir -p "$root"/{run,log,state,spool,devices}
    local device node node_port=$port gpus
    # SLURM takes character devices only, and counts them by the digits that their names end in.
    for device in {0..3}; do ln -sfn /dev/null "$root/devices/gpu$device"; done
    [ -s "$root/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$root/munge.key")

    # cred_expire: a job that is requeued waits this long before it may start again (usually 120).
    # MinJobAge: how long squeue, which the profile polls, still shows a job that has ended.
    cat >"$root/slurm.conf" <<CONF
ClusterName=mini
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$root/run/munge.socket,cred_expire=5
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/controller.pid
SlurmdPidFile=$root/run/%n.pid
SlurmctldLogFile=$root/log/controller.log
SlurmdLogFile=$root/log/%n.log
AccountingStorageType=accounting_storage/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=300
KillWait=3
SlurmdTimeout=15
NodeName=DEFAULT CPUs=16 CoresPerSocket=16 RealMemory=64000
CONF
    : >"$root/gres.conf"
    for node in "${nodes[@]}"; do
        node_port=$((node_port + 1))
        gpus=
        if [ "$node" != cpu ]; then
            gpus=Gres=gpu:4
            echo "NodeName=$node Name=gpu File=$root/devices/gpu[0-3]" >>"$root/gres.conf"
        fi
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$node_port $gpus"
        echo "PartitionName=$node Nodes=$node"
    done >>"$root/slurm.conf"
}

start_controller() {
    # The port may stay busy for some seconds after the last one was killed.
    local try
    for try in 1 2 3 4 5; do
        process controller >/dev/null || slurmctld -f "$root/slurm.conf" || true
        until_true 5 scontrol ping && return
    done
    tail "$root/log/controller.log" >&2
    fail "the controller does not answer after $try attempts"
}

start_node() {
    process "$1" >/dev/null || slurmd -N "$1" -f "$root/slurm.conf"
}

no_jobs() { [ -z "$(squeue --noheader)" ]; }

nodes_ready() {
    [ "$(sinfo --noheader --Node --format=%T | grep -Evc '^(idle|mixed|allocated)$')" = 0 ]
}

start() {
    [ "$(id -u)" = 0 ] || fail "must be root: slurmd starts jobs for their users"
    local program
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null ||
            fail "no $program here: apt-get install slurmctld slurmd slurm-client munge"
    done
    # A link to a test's own configuration, with nobody behind it, is what a killed test has left.
    case "$(readlink "$usual" || true)" in
    */cluster*/slurm.conf) pgrep -x slurmctld >/dev/null || rm "$usual" ;;
    esac
    if [ -e "$usual" ] && [ "$(readlink "$usual")" != "$root/slurm.conf" ]; then
        fail "$usual is another cluster's; it is left alone"
    fi
    configure
    mkdir -p "${usual%/*}"
    ln -sfn "$root/slurm.conf" "$usual"
    process munge >/dev/null || munged --force --key-file="$root/munge.key" \
        --socket="$root/run/munge.socket" --pid-file="$root/run/munge.pid" \
        --seed-file="$root/run/munge.seed" --log-file="$root/log/munge.log"
    start_controller
    local node
    for node in "${nodes[@]}"; do start_node "$node"; done
    until_true 30 nodes_ready || fail "not all nodes came up; see $root/log"
}

stop() {
    [ -d "$root" ] || return 0
    # Without the nodes' daemons nobody would end the jobs' own.
    if scancel --user="$(id -un)" 2>/dev/null; then until_true 15 no_jobs || true; fi
    local node
    for node in "${nodes[@]}"; do end "$node"; done
    end controller
    end munge
    [ "$(readlink "$usual")" != "$root/slurm.conf" ] || rm "$usual"
}

# Everything that runs on a node goes at once: its daemon, and every process of its jobs.
fail_node() {
    local job files
    kill -9 "$(process "$1")"
    for job in $(squeue --noheader --states=running --nodelist="$1" --format=%A); do
        # First those of SLURM that watch over the job, or they would still tell how it ended.
        files=$(
            grep -slaE "^slurmstepd: \[$job\." /proc/[0-9]*/cmdline || true
            grep -slaz "^SLURM_JOB_ID=$job$" /proc/[0-9]*/environ || true
        )
        cut -d / -f 3 <<<"$files" | xargs --no-run-if-empty kill -9 2>/dev/null || true
    done
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    stop-controller) kill -9 "$(process controller)" ;;
    start-controller) start_controller ;;
    fail-node) fail_node "$2" ;;
    start-node) start_node "$2" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
