//! Linux guests that boot by PVH, and that get vCPUs while they run, on real kernels. Boots kernels: ignored unless
//! `EVENKEEL_REQUIRE_LAB` is set; then whatever is missing is a failure.
#![cfg_attr(not(all(lab, target_arch = "x86_64")), allow(dead_code))]

use evenkeel_contract::View;
use evenkeel_contract::baseline::baseline;
use evenkeel_contract::document;
use evenkeel_lab::{Arch, Cache, Exit, Guest, Job, Options, host, kernels, run, shell_binary, vmlinux};

/// Takes every vCPU online that comes, says how many there are when that changes and whenever it is asked, and ends by a file.
const GUEST: &str = r#"
export PATH=/bin
for tool in mount cat nproc sleep dmesg grep wc tail reboot; do /bin/busybox ln -s busybox /bin/$tool; done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
online() { cat /sys/devices/system/cpu/online; }
lines=$(dmesg | wc -l)
echo "GUEST up cpus=$(nproc) online=$(online) possible=$(cat /sys/devices/system/cpu/possible) \
loader=$(cat /proc/sys/kernel/bootloader_type)"
seen=$(nproc)
beat=0
while [ $beat -lt 40 ]; do
  for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    [ "$(cat $cpu/online 2>/dev/null)" = 0 ] && echo 1 > $cpu/online
  done
  [ $(nproc) = $seen ] || { seen=$(nproc); echo "GUEST cpus=$seen online=$(online)"; beat=0; }
  beat=$((beat + 1))
  echo "GUEST beat $seen.$beat on $(online)"
  sleep 0.2
done
dmesg | grep -iE 'acpi.*(error|warn|exception)|firmware bug' | while read -r line; do echo "GUEST complaint: $line"; done
dmesg | tail -n +$((lines + 1)) | grep -iE 'warning:|bug:|call trace|lockup|stall' | while read -r line; do echo "GUEST complaint: $line"; done
echo "GUEST end online=$(online) clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
reboot -f
"#;

/// What is run on the first host: `run`, `plug`, `snapshot`.
const HOST: &str = r#"
./busybox --install -s /bin
await() {
  tries=0
  until grep -q "$1" console; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { cat console log; echo "no '$1' came"; exit 9; }
    sleep 0.2
  done
}
./evenkeel run --kernel vmlinux --initramfs initrd --contract contract.toml --memory 96 --vcpus 1 --most-vcpus 4 \
  --command-line "console=ttyS0 quiet reboot=k panic=-1" --control m.sock --limit 300 > console 2> log &
await "GUEST beat 1.3"
./evenkeel plug m.sock 2 || exit 1
await "GUEST beat 2.3"
./evenkeel plug m.sock 4 || exit 2
await "GUEST beat 4.3"
./evenkeel plug m.sock 5 && exit 3
./evenkeel plug m.sock 1 && exit 4
./evenkeel status m.sock || exit 5
./evenkeel snapshot --control m.sock -o guest.capsule || exit 6
./evenkeel stop m.sock
wait
cat console log
"#;

fn options() -> Options {
    let mut options = Options::new(Cache::locate().unwrap()).unwrap();
    options.timeout = Some(std::time::Duration::from_secs(600));
    options.memory_mib = 768;
    options
}

fn contract(hosts: &[&str]) -> String {
    let known: Vec<_> = hosts.iter().map(|name| evenkeel_hosts::load(name).unwrap()).collect();
    let views: Vec<&View> =
        known.iter().map(|host| host.views.iter().find(|v| v.shape == "kernel").unwrap()).collect();
    document::print(&baseline(&views, "lab").contract)
}

#[test]
#[cfg_attr(not(all(lab, target_arch = "x86_64")), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn a_plugged_vcpu_goes_along_to_another_kernel() {
    let options = options();
    let [first, second] = ["debian-6.12", "debian-6.1"].map(|name| host(name, kernels()).unwrap());
    let busybox = shell_binary(&options.cache, Arch::X86_64).unwrap();
    let evenkeel = options.binary("evenkeel", Arch::X86_64).unwrap();
    let guest =
        Guest::new(&options.cache, &host("debian-6.1", kernels()).unwrap().kernel, &[], GUEST).unwrap();
    let job = Job::new(&busybox)
        .arg("sh")
        .arg("script")
        .input("script", HOST)
        .input("busybox", std::fs::read(&busybox).unwrap())
        .input("evenkeel", std::fs::read(&evenkeel).unwrap())
        .input("vmlinux", vmlinux(&guest.image).unwrap())
        .input("initrd", guest.initramfs)
        .input("contract.toml", contract(&["debian-6.12", "debian-6.1"]))
        .output("guest.capsule");
    let mut ran = run(&first, &job, &options).unwrap();
    let said = String::from_utf8_lossy(&ran.output.stdout) + String::from_utf8_lossy(&ran.output.stderr);
    println!("{said}");
    assert_eq!(ran.output.exit, Exit::Code(0), "{said}");
    assert!(said.contains("GUEST up cpus=1 online=0 possible=0-3 loader=176"), "by PVH: {said}");
    assert!(said.contains("GUEST cpus=2 online=0-1") && said.contains("GUEST cpus=4 online=0-3"), "{said}");
    assert!(said.contains("4 of 4"), "what `status` says: {said}");
    let capsule = ran.output.files.remove("guest.capsule").expect("the capsule comes back");

    let mut job = Job::new(evenkeel).input("guest.capsule", capsule);
    let accepted = ["msr.175", "msr.176", "msr.10"];
    job.args = ["restore", "guest.capsule", "--run", "--limit", "300"].map(str::to_owned).to_vec();
    accepted.iter().for_each(|part| job.args.extend(["--accept".to_owned(), (*part).to_owned()]));
    let ran = run(&second, &job, &options).unwrap();
    let said = String::from_utf8_lossy(&ran.output.stdout) + String::from_utf8_lossy(&ran.output.stderr);
    println!("{said}");
    assert_eq!(ran.output.exit, Exit::Code(0), "{said}");
    assert!(said.contains("on 0-3") && !said.contains("GUEST up"), "it goes on: {said}");
    assert!(said.contains("GUEST end online=0-3 clock=kvm-clock"), "{said}");
    assert!(!said.contains("GUEST complaint"), "{said}");
}
