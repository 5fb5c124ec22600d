//! `cargo bench`: the figures of the README, each beside its floor and, where one can be installed, its peer, measured
//! in one run. Prints a table; decides nothing. On a shared machine only the ratios mean much.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use evenkeel_contract::baseline::Accumulator;
use evenkeel_contract::{View, diff};
use evenkeel_surface::{Arch, Hex32, Surface, canonical};
use evenkeel_sys::{Arg, Backend, FdKind, Handle, Live, Refusal, Request, Source};

/// Least and median of several runs.
fn times(runs: usize, mut work: impl FnMut()) -> (Duration, Duration) {
    let mut all: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    all.sort();
    (all[0], all[all.len() / 2])
}

fn show(d: Duration) -> String {
    match d.as_nanos() {
        n if n < 10_000 => format!("{:.2} µs", n as f64 / 1e3),
        n if n < 10_000_000 => format!("{:.0} µs", n as f64 / 1e3),
        n if n < 10_000_000_000 => format!("{:.1} ms", n as f64 / 1e6),
        n => format!("{:.1} s", n as f64 / 1e9),
    }
}

fn row(what: &str, (least, median): (Duration, Duration), reach: &str, beside: &str) {
    println!("{what:<52} {:>10} {:>10}   {reach:<10} {beside}", show(least), show(median));
}

/// Passes everything on to the kernel and adds up the time spent there: what the same requests cost bare.
struct Bare {
    live: Live,
    inside: AtomicU64,
    calls: AtomicU64,
}

impl Bare {
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.inside.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        done
    }
}

impl Backend for Bare {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.time(|| self.live.open(path, kind))
    }
    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        self.time(|| self.live.call(fd, request, arg))
    }
    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.time(|| self.live.read(source))
    }
    fn close(&self, fd: Handle) {
        self.time(|| self.live.close(fd));
    }
}

fn main() {
    println!("{:<52} {:>10} {:>10}   {:<10} beside, in this run", "", "least", "median", "to reach");
    capture();
    apply();
    let surfaces = variants(1000);
    algebra(&surfaces);
    files(&surfaces);
    process();
}

fn capture() {
    if !Path::new("/dev/kvm").exists() {
        println!("capture: not measured, there is no /dev/kvm here");
        return;
    }
    let options = evenkeel_capture::Options { side_by_side: true, ..evenkeel_capture::Options::default() };
    let (mut system, mut whole, mut bare, mut calls) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut size = 0;
    for _ in 0..30 {
        let backend = Bare { live: Live::new(), inside: AtomicU64::new(0), calls: AtomicU64::new(0) };
        let start = Instant::now();
        let (surface, timings) = match evenkeel_capture::capture_timed(&backend, &options) {
            Ok(done) => done,
            Err(e) => {
                println!("capture: not measured: {e}");
                return;
            }
        };
        whole.push(start.elapsed());
        system.push(timings.phases.iter().filter(|(name, _)| *name == "system").map(|(_, t)| *t).sum());
        bare.push(Duration::from_nanos(backend.inside.load(Ordering::Relaxed)));
        calls = backend.calls.load(Ordering::Relaxed);
        size = canonical::print(&surface).len();
    }
    let pick = |mut all: Vec<Duration>| {
        all.sort();
        (all[0], all[all.len() / 2])
    };
    let floor = pick(bare);
    row("capture, the part on /dev/kvm itself", pick(system), "1 ms", "");
    row(
        "capture, whole",
        pick(whole),
        "30 ms",
        &format!("{} of it inside the kernel, {calls} calls", show(floor.1)),
    );
    println!("{:<52} {:>10} {:>10}   {:<10}", "capture file, bytes", size, "", "65536");
}

/// Passes everything on to the kernel and adds up the time of what sets, and of all.
#[derive(Default)]
struct Apart {
    live: Live,
    setting: AtomicU64,
    all: AtomicU64,
}

impl Backend for Apart {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.live.open(path, kind)
    }
    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let start = Instant::now();
        let done = self.live.call(fd, request, arg);
        let time = start.elapsed().as_nanos() as u64;
        self.all.fetch_add(time, Ordering::Relaxed);
        if !request.name.contains("GET") {
            self.setting.fetch_add(time, Ordering::Relaxed);
        }
        done
    }
    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.live.read(source)
    }
    fn close(&self, fd: Handle) {
        self.live.close(fd);
    }
}

/// This host's own contract on a VM with one vCPU, which are made before: set, read back, compared, reported.
fn apply() {
    let Ok(here) = evenkeel_hosts::load("here") else {
        println!("apply: not measured, this host cannot be captured");
        return;
    };
    let Some(view) = here.views.iter().find(|v| v.shape == "kernel" || v.shape == "pmu") else { return };
    let contract = evenkeel_contract::baseline::baseline(&[view], "here").contract;
    let plan = match evenkeel_apply::Plan::new(&contract, &here.surface, evenkeel_apply::Setup::default()) {
        Ok(plan) => plan,
        Err(e) => {
            println!("apply: not measured: {e}");
            return;
        }
    };
    let (mut whole, mut setting, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..60 {
        let backend = Apart::default();
        let made = evenkeel_sys::System::open(&backend).and_then(|system| system.create_vm(plan.vm_type));
        let Ok(vm) = made else { return };
        let reset = || {
            backend.setting.store(0, Ordering::Relaxed);
            backend.all.store(0, Ordering::Relaxed);
        };
        reset();
        let mut applying = plan.start();
        let start = Instant::now();
        let _ = applying.vm(&vm);
        let on_vm = start.elapsed();
        let (set, every) = (backend.setting.load(Ordering::Relaxed), backend.all.load(Ordering::Relaxed));
        let Ok(vcpu) = vm.create_vcpu(0) else { return };
        reset();
        let start = Instant::now();
        let _ = applying.vcpu(&vcpu, 0);
        whole.push(on_vm + start.elapsed());
        setting.push(Duration::from_nanos(set + backend.setting.load(Ordering::Relaxed)));
        all.push(Duration::from_nanos(every + backend.all.load(Ordering::Relaxed)));
        black_box(applying.report());
    }
    let pick = |all: &mut Vec<Duration>| {
        all.sort();
        (all[0], all[all.len() / 2])
    };
    let (whole, setting, all) = (pick(&mut whole), pick(&mut setting), pick(&mut all));
    let ratio = whole.1.as_secs_f64() / setting.1.as_secs_f64();
    let beside =
        format!("{} for what sets alone: {ratio:.1} times; {} with what reads", show(setting.1), show(all.1));
    row("apply on a VM with one vCPU, read back and compared", whole, "3 times", &beside);
}

/// Distinct hosts, made from a bundled capture by clearing feature bits.
fn variants(count: u32) -> Vec<Surface> {
    let base = evenkeel_hosts::load("debian-7.3").expect("it is bundled").surface;
    (0..count)
        .map(|i| {
            let mut s = base.clone();
            let word = s.offer.cpuid.iter_mut().find(|e| e.leaf.0 == 7).expect("leaf 7");
            word.ebx = Hex32(word.ebx.0 & !(i & 0x3ff));
            let word = s.offer.cpuid.iter_mut().find(|e| e.leaf.0 == 0x8000_0001).expect("leaf 0x80000001");
            word.ecx = Hex32(word.ecx.0 & !(i.rotate_left(5) & 0x1e0));
            // What the CPU does not have, and the size of a cache, so that every one is distinct.
            let word = s.offer.cpuid.iter_mut().find(|e| e.leaf.0 == 0x8000_0006).expect("leaf 0x80000006");
            word.edx = Hex32(i);
            canonical::seal(&mut s);
            s
        })
        .collect()
}

fn algebra(surfaces: &[Surface]) {
    let (o, n) = (
        evenkeel_hosts::load("debian-6.1").expect("bundled"),
        evenkeel_hosts::load("debian-7.3").expect("bundled"),
    );
    let words = times(400, || {
        black_box(diff::words(&o.views[1], &n.views[1]));
    });
    let whole = times(200, || {
        black_box(diff::diff((&o.surface, &o.views), (&n.surface, &n.views)));
    });
    row(
        "diff of two surfaces, every facet and item named",
        whole,
        "200 µs",
        &format!("{} for the words alone", show(words.1)),
    );
    let views: Vec<Vec<View>> = surfaces.iter().map(|s| View::all(s, "h")).collect();
    let baseline = times(20, || {
        let mut accumulator = Accumulator::default();
        for v in &views {
            accumulator.add(&v[1]);
        }
        black_box(accumulator.finish("fleet", Arch::X86_64, "kernel"));
    });
    row("baseline of 1,000 parsed surfaces", baseline, "5 ms", "");
}

fn files(surfaces: &[Surface]) {
    let dir = tempfile::tempdir().expect("a folder for captures");
    let distinct = dir.path().join("distinct");
    std::fs::create_dir(&distinct).expect("a folder");
    for (i, s) in surfaces.iter().enumerate() {
        std::fs::write(distinct.join(format!("{i:06}.json")), canonical::print(s))
            .expect("a capture is written");
    }
    let floor = |folder: &Path, runs| {
        times(runs, || {
            for entry in std::fs::read_dir(folder).expect("it is there") {
                black_box(blake3::hash(&std::fs::read(entry.expect("an entry").path()).expect("a file")));
            }
        })
    };
    let whole = |folder: &Path, runs| {
        times(runs, || {
            let fleet = evenkeel_hosts::load_fleet(&[folder.to_owned()]).expect("captures");
            let mut accumulator = Accumulator::default();
            for m in &fleet.members {
                accumulator.add(&m.views[1]);
            }
            black_box(accumulator.finish("fleet", Arch::X86_64, "kernel"));
        })
    };
    let read = floor(&distinct, 5);
    let beside = format!("{} to read and hash them, one thread{}", show(read.1), peer(1000));
    row("baseline of 1,000 distinct capture files", whole(&distinct, 7), "150 ms", &beside);

    if std::env::args().any(|a| a == "--quick") {
        println!("baseline of 100,000 files: left out (--quick)");
        return;
    }
    // As many as fit: 100,000 files of 25 KiB, 200 distinct stable parts, the rest differs in what may differ.
    let many = dir.path().join("many");
    std::fs::create_dir(&many).expect("a folder");
    for i in 0..100_000u64 {
        let mut s = surfaces[(i % 200) as usize].clone();
        s.volatile.captured_at = i;
        if let Err(e) = std::fs::write(many.join(format!("{i:06}.json")), canonical::print(&s)) {
            println!("baseline of 100,000 files: not measured: {e}");
            return;
        }
    }
    let read = floor(&many, 2);
    let beside = format!("{} to read and hash them, one thread", show(read.1));
    row("baseline of 100,000 files, 200 distinct offers", whole(&many, 3), "5 s", &beside);
}

/// libvirt's baseline over as many (far smaller) descriptions of CPUs, where its client and test driver are installed.
fn peer(count: usize) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("cpus.xml");
    let features = ["sse4.1", "sse4.2", "aes", "avx", "avx2", "bmi1", "bmi2", "fma", "movbe", "popcnt"];
    let mut xml = String::from("<cpus>");
    for i in 0..count {
        xml.push_str("<cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor><topology sockets='1' cores='1' threads='1'/>");
        for (k, f) in features.iter().enumerate().filter(|(k, _)| i >> k & 1 == 1) {
            let _ = k;
            xml.push_str(&format!("<feature name='{f}'/>"));
        }
        xml.push_str("</cpu>");
    }
    xml.push_str("</cpus>");
    std::fs::write(&file, xml).expect("a file");
    let virsh = || {
        let mut command = Command::new("virsh");
        command
            .args(["-c", "test:///default", "cpu-baseline"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status()
    };
    match virsh() {
        Ok(status) if status.success() => {
            let (_, median) = times(5, || {
                let _ = black_box(virsh());
            });
            format!("; virsh cpu-baseline of {count}: {}", show(median))
        }
        Ok(_) => format!("; virsh refuses {count}"),
        Err(_) => "; no virsh here to compare with".to_owned(),
    }
}

fn process() {
    let run = |program: &str, args: &[&str]| {
        let _ =
            black_box(Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status());
    };
    let nothing = times(40, || run("true", &[]));
    let survive = times(40, || run(env!("CARGO_BIN_EXE_evenkeel"), &["survive", "debian-6.1", "debian-7.3"]));
    row(
        "survive, as a process",
        survive,
        "20 ms",
        &format!("{} for a process that does nothing", show(nothing.1)),
    );
}
