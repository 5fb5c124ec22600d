# Work that can be checked, on every CPU at once: blocks with a known checksum go to the disk, the page cache is dropped, and
# they are read back. Every line for the lab begins with JOURNEY.
export PATH=/bin
for tool in mount insmod cat cut nproc dd md5sum head yes seq grep dmesg tail wc tr sync reboot sleep; do
  /bin/busybox ln -s busybox /bin/$tool
done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
  insmod $module || echo "JOURNEY wrong: $module does not load"
done
clock() { cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }
uptime() { cut -d ' ' -f 1 /proc/uptime; }
kernel=$(cat /proc/sys/kernel/osrelease)
cpus=$(nproc)
began=$(clock)
lines=$(dmesg | wc -l)
echo "JOURNEY up $kernel cpus=$cpus clock=$began uptime=$(uptime)"

# What a pass of a worker writes: 256 KiB.
block() { yes "worker $1, pass $2, and nothing else" | head -c 262144; }
work() {
  local worker=$1 pass=1 at wanted got
  while [ $pass -le PASSES ]; do
    at=$((worker * PASSES + pass - 1))
    wanted=$(block $worker $pass | md5sum)
    block $worker $pass | dd of=/dev/vda bs=4k seek=$((at * 64)) conv=fsync,notrunc 2>/dev/null || echo "JOURNEY wrong: write"
    echo 1 > /proc/sys/vm/drop_caches
    got=$(dd if=/dev/vda bs=4k skip=$((at * 64)) count=64 2>/dev/null | md5sum)
    [ "$wanted" = "$got" ] || echo "JOURNEY wrong: worker $worker read $got in pass $pass, not $wanted"
    echo "JOURNEY pass $worker.$pass"
    pass=$((pass + 1))
  done
}
worker=0
while [ $worker -lt $cpus ]; do
  work $worker &
  worker=$((worker + 1))
done
wait

# All of it once more, from the disk.
echo 3 > /proc/sys/vm/drop_caches
right=0
for worker in $(seq 0 $((cpus - 1))); do
  for pass in $(seq 1 PASSES); do
    wanted=$(block $worker $pass | md5sum)
    got=$(dd if=/dev/vda bs=4k skip=$(((worker * PASSES + pass - 1) * 64)) count=64 2>/dev/null | md5sum)
    [ "$wanted" = "$got" ] && right=$((right + 1))
  done
done
echo "JOURNEY right $right of $((cpus * PASSES))"
# What its kernel says against the CPU when it boots is no matter of the journey, and is told apart.
complaints() { grep -iE 'warning:|bug:|oops|lockup|stall|unstable|call trace|hung|i/o error|clock skew|clocksource'; }
dmesg | head -n $lines | complaints | grep -v clocksource: |
  while read -r line; do echo "JOURNEY boot: $line"; done
dmesg | tail -n +$((lines + 1)) | complaints | grep -v 'Switched to clocksource' |
  while read -r line; do echo "JOURNEY complaint: $line"; done
echo "JOURNEY end cpus=$(nproc) clock=$(clock) was=$began uptime=$(uptime)"
sync
reboot -f
