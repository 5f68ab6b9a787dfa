#!/usr/bin/env bash
# Slurm on this machine alone, to try hydra/launcher=slurm out: its controller, munge, and two nodes, which claim to have
# two cores and a GPU each, whatever there is.
#
#   scripts/slurm_on_one_machine.sh start    as root; installs Debian's packages where they are missing
#   scripts/slurm_on_one_machine.sh stop     ends every process that it started
#
# It writes to a folder of its own, $SLURM_TRIAL (/tmp/mfrl-slurm), and prints the line that tells commands of Slurm's
# about it. A Slurm that this machine has already is left alone.
set -euo pipefail
folder=${SLURM_TRIAL:-/tmp/mfrl-slurm}
export SLURM_CONF=$folder/slurm.conf
port=${SLURM_TRIAL_PORT:-26817}    # the controller's; the nodes have those after it
nodes=2

stop() {
    local name pid
    if [ -f "$folder/slurmctld.pid" ]; then # what runs may save, and would outlive the daemons
        scancel --partition=trial 2>/dev/null || true
        for _ in $(seq 60); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.5; done
    fi
    for name in slurmctld node1 node2 munged; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(<"$folder/$name.pid")
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        ! kill -0 "$pid" 2>/dev/null || kill -KILL "$pid"
    done
}

install() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null \
        && command -v munged >/dev/null && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge \
        >/dev/null
}

configure() {
    mkdir -p "$folder"/{state,munge,node1,node2}
    chmod 755 "$folder" && chmod 711 "$folder/munge"
    [ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    # A job that is sent again starts once its credential has expired: after 5 seconds here, 120 otherwise.
    cat >"$SLURM_CONF" <<CONF
ClusterName=trial
SlurmctldHost=localhost
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmdSpoolDir=$folder/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=1
ReturnToService=2
KillWait=20
MinJobAge=300
NodeName=node[1-$nodes] NodeHostname=localhost Port=[$((port + 1))-$((port + nodes))] CPUs=2 Gres=gpu:1 State=UNKNOWN
PartitionName=trial Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
CONF
    echo "NodeName=node[1-$nodes] Name=gpu File=/dev/zero" >"$folder/gres.conf"
}

start() {
    install
    stop
    configure
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
    slurmctld -i
    for ((node = 1; node <= nodes; node++)); do slurmd -N "node$node"; done
    for _ in $(seq 120); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null | sort -u)" = idle ]; then
            sinfo
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "Slurm's nodes did not start within a minute: see $folder/*.log" >&2
    exit 1
}

case ${1:-} in
start) start ;;
stop) stop ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
