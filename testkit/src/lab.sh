# Runs as process 1 of a new world: makes it, says "ready PID" and stays until the test process is gone.
set -e
dir=$1 name=$2
exec 3<&0
# The old /proc still numbers processes as the host does.
read -r pid _ </proc/self/stat
mount -t proc proc /proc
printf '%s\n' "$name" >/proc/sys/kernel/hostname

# A cgroup tree whose root is the lab's own group.
version1=$(sed -n 's/^[1-9][0-9]*:\([^:]*\):.*/\1/p' /proc/self/cgroup)
mount -t sysfs sysfs /sys
if [ -n "$version1" ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for group in $version1; do
        place=/sys/fs/cgroup/${group#name=}
        case $group in name=*) group=none,$group ;; esac
        mkdir -p "$place"
        mount -t cgroup -o "$group" cgroup "$place"
    done
    mkdir -p /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified 2>/dev/null || rmdir /sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # Processes live in leaves only, so that controllers can be handed down.
    mkdir -p /sys/fs/cgroup/lab-init
    echo 1 >/sys/fs/cgroup/lab-init/cgroup.procs
fi

# Own state directories, own resolver configuration.
resolver=$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$(dirname "$resolver")"
[ -e "$resolver" ] || : >"$resolver"
mount --bind "$dir/resolv.conf" "$resolver"
mount --bind "$dir/lib" /var/lib

# A node with one neighbour: the outside, which knows a way to LoadBalancer addresses and to nothing else of the cluster.
ip link set lo up
ip netns add outside
ip link add eth0 type veth peer name eth0 netns outside
ip address add 198.51.100.1/24 dev eth0
ip link set eth0 up
ip -n outside link set lo up
ip -n outside address add 198.51.100.2/24 dev eth0
ip -n outside link set eth0 up
ip -n outside route add 10.112.0.0/24 via 198.51.100.1
ip route add default via 198.51.100.2

echo "ready $pid"
exec >/dev/null
# Process 1 collects orphans while it waits; when it ends the kernel ends everything else.
cat <&3 &
wait $! || true
