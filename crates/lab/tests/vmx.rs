//! Boots a real kernel with kvm_intel under Bochs. Ignored unless `EVENKEEL_REQUIRE_LAB` names this lane; then whatever
//! is missing is a failure.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel_lab::{Cache, Error, Exit, Host, Job, Machine, Options, host, kernels, run};

const NAME: &str = "debian-6.12-vmx";

fn lab() -> (Host, Options) {
    let host = host(NAME, kernels()).unwrap();
    let mut options = Options::new(Cache::locate().unwrap()).unwrap_or_else(|why| panic!("{why}"));
    options.progress = Some(|words| eprintln!("{words}"));
    (host, options)
}

fn init(options: &Options, host: &Host) -> PathBuf {
    options.binary("evenkeel-lab-init", host.kernel.arch).unwrap_or_else(|why| panic!("{why}"))
}

#[cfg_attr(not(lab_vmx), ignore = "boots a kernel under Bochs, minutes: set EVENKEEL_REQUIRE_LAB=vmx")]
#[test]
fn a_program_sees_kvm_and_its_files_come_back() {
    let (host, options) = lab();
    // Every byte there is, so that a line discipline that changes one is noticed.
    let bytes: Vec<u8> = (0..256u32 << 10).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let job = Job::new(init(&options, &host)).arg("look.txt").input("bytes", bytes.clone());
    let job = job.output("look.txt").output("bytes").output("none.txt");
    let run = run(&host, &job, &options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((run.release.as_str(), &run.afterwards), (host.kernel.release.as_str(), &None));
    let output = run.output;
    assert_eq!((output.exit, output.stdout.as_slice()), (Exit::Code(0), &b"looked\n"[..]));
    let look = String::from_utf8_lossy(&output.files["look.txt"]).into_owned();
    assert!(look.contains("/dev/kvm: opens\n") && look.contains("/dev/net/tun: opens\n"), "{look}");
    assert!(output.files["bytes"] == bytes, "the bytes came back changed");
    assert!(output.missing["none.txt"].contains("No such file"), "{output:?}");
    println!(
        "boot {:.1} s, {} KiB of results in {:.1} s: {:.1} KiB/s",
        run.boot.as_secs_f64(),
        bytes.len() / 1024,
        output.took.as_secs_f64(),
        bytes.len() as f64 / 1024.0 / output.took.as_secs_f64()
    );
}

/// Without posted interrupts KVM has no APICv, and without it the older kernel raises #GP as well: the lane cannot tell
/// kernels apart there, which its documentation says. A Bochs that has them makes this fail, and the lane tell more.
#[cfg_attr(not(lab_vmx), ignore = "boots a kernel under Bochs, minutes: set EVENKEEL_REQUIRE_LAB=vmx")]
#[test]
fn reserved_x2apic_registers_fault_without_apicv() {
    let (_, options) = lab();
    let host = host("debian-6.1-vmx", kernels()).unwrap();
    let evenkeel = options.binary("evenkeel", host.kernel.arch).unwrap_or_else(|why| panic!("{why}"));
    let job = Job::new(evenkeel).arg("observe").arg("-o").arg("o.json").output("o.json");
    let run = run(&host, &job, &options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(run.output.exit, Exit::Code(0), "{:?}", run.output);
    let seen = String::from_utf8_lossy(&run.output.files["o.json"]).into_owned();
    let ends = |name: &str| {
        let at = seen.find(&format!("\"{name}\"")).unwrap_or_else(|| panic!("{name} was not seen"));
        seen[at..].split('}').next().unwrap_or_default().to_owned()
    };
    assert!(ends("x86.x2apic.reserved-register-read").contains("0x1"), "APICv is on: docs/lab-vmx.md");
    // Those that KVM itself does not know, from 0x83f on to the end.
    assert!(ends("x2apic.83f-8ff").contains("\"vector\":13"), "{}", ends("x2apic.83f-8ff"));
    assert!(ends("x2apic.803").contains("value"), "the version can be read");
}

#[cfg_attr(not(lab_vmx), ignore = "boots a kernel under Bochs, minutes: set EVENKEEL_REQUIRE_LAB=vmx")]
#[test]
fn a_kernel_that_panics_is_quoted() {
    let (host, options) = lab();
    let error = run(&host, &Job::new(init(&options, &host)).arg("panic"), &options).unwrap_err();
    assert!(matches!(error, Error::Died { .. }), "{error}");
    assert!(error.to_string().contains("Kernel panic"), "{error}");
}

#[cfg_attr(not(lab_vmx), ignore = "starts Bochs: set EVENKEEL_REQUIRE_LAB=vmx")]
#[test]
fn a_host_that_takes_too_long_is_killed() {
    let (host, mut options) = lab();
    options.timeout = Some(Duration::from_secs(1));
    let error = run(&host, &Job::new(init(&options, &host)), &options).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_host_of_one_job_says_so() {
    let host = host(NAME, kernels()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        cache: Cache::at(folder.path()),
        binaries: folder.path().to_owned(),
        memory_mib: 256,
        timeout: None,
        progress: None,
        fresh: false,
        shared: None,
    };
    let error = Machine::up(&host, &options).unwrap_err();
    assert!(matches!(error, Error::OneJob { .. }), "{error}");
}

/// The ids of processes whose parent is `parent`.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let parent_of = |id: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    processes.filter(|id| parent_of(*id) == Some(parent)).collect()
}

/// Runs the other end of this test, kills it while Bochs works, and looks what is left.
#[cfg_attr(not(lab_vmx), ignore = "starts Bochs: set EVENKEEL_REQUIRE_LAB=vmx")]
#[test]
fn a_lab_that_is_killed_leaves_nothing() {
    if std::env::var_os("EVENKEEL_TEST_VICTIM").is_some() {
        let (host, options) = lab();
        let ended = run(&host, &Job::new(init(&options, &host)), &options);
        panic!("it was not killed: {ended:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_lab_that_is_killed_leaves_nothing", "--include-ignored", "--nocapture"])
        .env("EVENKEEL_TEST_VICTIM", "1")
        // Whatever is put where temporary files go would be seen.
        .env("TMPDIR", folder.path())
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let emulator = loop {
        let named = |id: &u32| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.starts_with("bochs"))
        };
        if let Some(id) = children(victim.id()).into_iter().find(named) {
            break id;
        }
        if let Some(status) = victim.try_wait().unwrap() {
            let mut words = String::new();
            victim.stderr.take().unwrap().read_to_string(&mut words).unwrap();
            panic!("{status}: {words}");
        }
        assert!(Instant::now() < patience, "no emulator was started");
        std::thread::sleep(Duration::from_millis(50));
    };
    // It has opened its files by now, and is in the midst of its work.
    std::thread::sleep(Duration::from_secs(3));
    assert!(fs::metadata(format!("/proc/{emulator}")).is_ok(), "the emulator ended by itself");
    victim.kill().unwrap();
    victim.wait().unwrap();
    // Dead at once; whoever inherits it may take a while to notice that.
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{emulator}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    let patience = Instant::now() + Duration::from_secs(2);
    while lives() {
        assert!(Instant::now() < patience, "the emulator lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
