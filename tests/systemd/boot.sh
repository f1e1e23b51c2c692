# Boots this machine's own systemd beside it, as process 1 of a process namespace.
#
#   boot.sh FOLDER PYTHON SITE
#
# The root is this machine's, seen through an overlay whose changes land in FOLDER; devices, /run and
# /tmp are new ones, the kernel's settings are read-only and the network has a loopback alone.
# PYTHON and SITE, an interpreter and packages for it, appear in /opt: wherever they are, a service may
# be kept from seeing it.
set -eu
folder=$1 python=$2 site=$3

mount --make-rprivate /
mkdir "$folder/changes" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/changes,workdir=$folder/work" overlay "$folder/root"
cd "$folder/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind -o ro proc/sysrq-trigger proc/sysrq-trigger
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup

mount -t tmpfs -o mode=755 tmpfs dev
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<< "$device"
  mknod -m 666 "dev/$name" c "$major" "$minor"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp

mkdir -p opt/python opt/site
mount --bind -o ro "$python" opt/python
mount --bind -o ro "$site" opt/site
# Its library, where it has one, is looked for where it was built to be: out of sight.
echo /opt/python/lib > etc/ld.so.conf.d/00-python.conf
chroot . ldconfig

# Nothing of this machine's own that runs by the clock.
ln -sf /dev/null etc/systemd/system/timers.target
# Not chroot: in one, the kernel makes no user namespaces, which PrivateUsers= of a unit asks for.
mkdir run/before
pivot_root . run/before
cd /
umount -l run/before
# As systemd has it where it boots no container: credentials of a service are mounted in another namespace.
mount --make-rshared /
exec env -i container=eplbd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  setpriv --bounding-set -sys_module,-sys_time,-sys_rawio,-syslog \
  /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
