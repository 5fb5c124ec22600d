//! `cargo bench -p evenkeel-memory`: how long a guest stands still for a snapshot, how fast its memory is written beside write(2)
//! of as many bytes into a fresh memfd, and how long it takes from a new process to the first byte that a restored guest puts out,
//! beside the same with memory that is there already. Prints tables; decides nothing. All files are memfds, so that no disk is
//! measured. `BLACKOUT_MIB=1024,4096` says which guests; `BLACKOUT_RUNS=7` how often;
//! `BLACKOUT_RESTORES_ONLY=1` leaves the snapshots out.

#[cfg(target_arch = "x86_64")]
#[path = "../tests/common/mod.rs"]
mod common;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use evenkeel_capsule::Reader;
    use evenkeel_memory::{DirtyLog, Guard, Lazy, Options, Report, Way, load, snapshot};
    use evenkeel_state::{file, x86};
    use evenkeel_sys::{Exit, Live, Ram, Slot, System};

    use crate::common::{BURSTS, GAP, Habit, guest, ticks, with, word};

    /// Copies aside: as much as a guest writes while it is saved.
    const ROOM: u64 = 256 << 20;

    fn memfd() -> File {
        File::from(rustix::fs::memfd_create("capsule", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    fn of(name: &str, or: &str) -> Vec<usize> {
        let text = std::env::var(name).unwrap_or_else(|_| or.to_owned());
        text.split(',').filter_map(|word| word.parse().ok()).collect()
    }

    fn ms(time: Duration) -> f64 {
        time.as_secs_f64() * 1e3
    }

    /// Least, median, most.
    fn spread(mut all: Vec<f64>) -> [f64; 3] {
        all.sort_by(f64::total_cmp);
        [all[0], all[all.len() / 2], all[all.len() - 1]]
    }

    fn show(what: &str, all: Vec<f64>, unit: &str) {
        let [least, median, most] = spread(all);
        println!("  {what:<58} {least:>9.2} {median:>9.2} {most:>9.2} {unit}");
    }

    /// Milliseconds that this process has used CPUs, in all its threads.
    fn cpu() -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let words: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) * 10.0
    }

    fn write_floor(bytes: &[u8]) -> Duration {
        let mut file = memfd();
        let begin = Instant::now();
        file.write_all(bytes).unwrap();
        begin.elapsed()
    }

    /// Snapshots of one guest.
    fn pauses(mib: usize, rate: u64, logged: bool, runs: usize) {
        let habit = Habit { memory: mib << 20, rate, bursts: 1000 };
        let what = if rate == 0 { "idle".to_owned() } else { format!("writing {rate} MiB/s") };
        let way = if logged { "live pre-copy, dirty log" } else { "copy before write" };
        println!("{mib} MiB, {what}, {way}: least, median, most of {runs}");
        with(habit, |pilot, machine| {
            let ram = machine.ram();
            let guard = Guard::new(guest(ram), None, ROOM).unwrap();
            let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0, length: ram.len() as u64 };
            let log = DirtyLog::new(machine.vm(), vec![(slot, ram.clone())]).unwrap();
            let way = match logged {
                true => Way::DirtyLog(&log, "asked for".to_owned()),
                false => Way::Guard(&guard),
            };
            let (mut reports, mut gaps, mut rates): (Vec<Report>, Vec<f64>, Vec<f64>) = Default::default();
            let bytes = if rate == 0 && mib <= 1024 { vec![7; ram.len()] } else { Vec::new() };
            let (mut floors, mut ratios, mut used) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
            for _ in 0..runs {
                if rate > 0 {
                    std::thread::sleep(Duration::from_millis(200));
                    let (before, begin) = (word(ram, BURSTS), Instant::now());
                    std::thread::sleep(Duration::from_millis(300));
                    let bursts = (word(ram, BURSTS) - before) as f64;
                    rates.push(bursts * (rate * 256 / 1000) as f64 / 256.0 / begin.elapsed().as_secs_f64());
                    ram.write(GAP, &[0; 8]).unwrap();
                }
                let begin = cpu();
                let report = snapshot(&way, pilot, &mut memfd(), &Options::default()).unwrap();
                used[0].push(cpu() - begin);
                if rate > 0 {
                    gaps.push(word(ram, GAP) as f64);
                }
                if !bytes.is_empty() {
                    let begin = cpu();
                    let floor = write_floor(&bytes);
                    used[1].push(cpu() - begin);
                    floors.push(ms(floor));
                    ratios.push(floor.as_secs_f64() / report.write.as_secs_f64());
                }
                reports.push(report);
            }
            let each =
                |of: &dyn Fn(&Report) -> Duration| reports.iter().map(|r| ms(of(r))).collect::<Vec<_>>();
            show("blackout", each(&|r| r.blackout), "ms");
            show("  of it: until nobody writes", each(&|r| r.pause), "ms");
            show("  of it: state of VM and vCPU", each(&|r| r.save), "ms");
            show("  of it: memory", each(&|r| r.freeze), "ms");
            show("before it, while the guest runs", each(&|r| r.before), "ms");
            show("writing, while the guest runs", each(&|r| r.write), "ms");
            let count =
                |of: &dyn Fn(&Report) -> u64| reports.iter().map(|r| of(r) as f64).collect::<Vec<_>>();
            match logged {
                true => show("pages copied in the pause", count(&|r| r.last), ""),
                false => {
                    show("chunks protected in the pause", count(&|r| r.served.again), "");
                    show("writes that waited for a copy", count(&|r| r.served.copied), "");
                }
            }
            if rate > 0 {
                show("the guest wrote, before", rates, "MiB/s");
                let khz = ticks_of(machine) / 1000.0;
                show("longest that the guest did not run", gaps.iter().map(|gap| gap / khz).collect(), "ms");
            }
            if !floors.is_empty() {
                show("write(2) of as much into a memfd", floors, "ms");
                show("throughput of write(2)'s", ratios, "");
                let [ours, theirs] = used;
                show("CPU time of the snapshot, all threads", ours, "ms");
                show("CPU time of write(2)", theirs, "ms");
            }
        });
    }

    fn ticks_of(machine: &evenkeel_monitor::Machine<'_, '_>) -> f64 {
        machine.vcpu(1).map_or(2e9, |vcpu| ticks(&vcpu) as f64)
    }

    /// Restores of one capsule.
    fn restores(mib: usize, runs: usize) {
        let habit = Habit { memory: mib << 20, rate: 20, bursts: 1000 };
        let mut lazy = memfd();
        with(habit, |pilot, machine| {
            pilot.goes_on();
            let guard = Guard::new(guest(machine.ram()), None, ROOM).unwrap();
            let options = Options { lazy: true, ..Options::default() };
            snapshot(&Way::Guard(&guard), pilot, &mut lazy, &options).unwrap();
        });
        // What a hand-over would pass: memory as it was saved.
        let reader = Reader::open(&lazy, &file::known).unwrap();
        let floor = Arc::new(Ram::new(mib << 20).unwrap());
        load(&reader, &lazy, &guest(&floor)).unwrap();
        drop(reader);
        println!("{mib} MiB, restored: least, median, most of {runs}");
        let mut all: [Vec<f64>; 3] = Default::default();
        for _ in 0..runs {
            for (times, kind) in all.iter_mut().zip(["floor", "lazy", "eager"]) {
                let input = if kind == "floor" { floor.fd() } else { lazy.as_fd() };
                // The child reads the capsule's sections in any case.
                let there = lazy.try_clone().unwrap();
                times.push(ms(first_output(kind, input.try_clone_to_owned().unwrap().into(), &there)));
            }
        }
        let ratios =
            |n: usize| all[n].iter().zip(&all[0]).map(|(time, floor)| time / floor).collect::<Vec<_>>();
        let (lazily, eagerly) = (ratios(1), ratios(2));
        let [floor, lazy_ms, eager_ms] = all;
        show("spawn to first output, memory there already: the floor", floor, "ms");
        show("spawn to first output, lazily, each chunk verified", lazy_ms, "ms");
        show("  of the floor", lazily, "");
        show("spawn to first output, eagerly, verified", eager_ms, "ms");
        show("  of the floor", eagerly, "");
        let bytes = vec![7; mib << 20];
        let (mut rates, mut ratios, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            let floor = write_floor(&bytes);
            let ram = Arc::new(Ram::new(mib << 20).unwrap());
            let begin = Instant::now();
            let reader = Reader::open(&lazy, &file::known).unwrap();
            load(&reader, &lazy, &guest(&ram)).unwrap();
            let took = begin.elapsed();
            rates.push(mib as f64 / 1024.0 / took.as_secs_f64());
            ratios.push(floor.as_secs_f64() / took.as_secs_f64());
            floors.push(mib as f64 / 1024.0 / floor.as_secs_f64());
        }
        show("eager load, verified", rates, "GiB/s");
        show("write(2) of as much into a memfd", floors, "GiB/s");
        show("eager load of write(2)'s", ratios, "");
    }

    fn first_output(kind: &str, memory: File, capsule: &File) -> Duration {
        let begin = Instant::now();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--child", kind]).stdin(Stdio::from(memory)).stdout(Stdio::piped());
        child.stderr(Stdio::from(capsule.try_clone().unwrap()));
        let mut child = child.spawn().unwrap();
        let mut byte = [0];
        child.stdout.take().unwrap().read_exact(&mut byte).expect("the guest put something out");
        let took = begin.elapsed();
        assert_eq!(byte, [b'!']);
        child.wait().unwrap();
        took
    }

    /// The process that restores: memory, or the capsule again, is its standard input, and the capsule its standard error.
    fn child(kind: &str) {
        let capsule = File::from(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
        let input = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let mut reader = Reader::open(&capsule, &file::known).unwrap();
        let saved = file::Guest::read(&mut reader).unwrap();
        let length = reader.index().unwrap().bytes() as usize;
        let ram = match kind {
            "floor" => Arc::new(Ram::of(input, length).unwrap()),
            _ => Arc::new(Ram::new(length).unwrap()),
        };
        let mut loading = None;
        match kind {
            "lazy" => loading = Some(Lazy::new(&reader, &capsule, guest(&ram), None, |_| ()).unwrap()),
            "eager" => drop(load(&reader, &capsule, &guest(&ram)).unwrap()),
            _ => {}
        }
        let live = Live::new();
        let system = System::open(&live).unwrap();
        let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0, length: length as u64 };
        let made = x86::remake(&system, &saved.image.manifest, &[(slot, ram)]).unwrap();
        x86::restore(&mut made.parts(&system), &saved.image, &x86::Options::default()).unwrap();
        let mut runner = made.vcpus[0].runner(&system).unwrap();
        loop {
            if let Exit::PortWrite { .. } = runner.run().unwrap() {
                break;
            }
        }
        std::io::stdout().write_all(b"!").unwrap();
        std::io::stdout().flush().unwrap();
        // The rest of memory is of no interest any more.
        std::mem::forget(loading);
        std::process::exit(0);
    }

    pub fn main() {
        let arguments: Vec<String> = std::env::args().collect();
        if let [_, flag, kind, ..] = &arguments[..]
            && flag == "--child"
        {
            return child(kind);
        }
        for node in ["/dev/kvm", "/dev/userfaultfd"] {
            if File::options().read(true).write(true).open(node).is_err() {
                println!("not measured: {node} cannot be used here");
                return;
            }
        }
        let runs = of("BLACKOUT_RUNS", "7")[0].max(1);
        let sizes = of("BLACKOUT_MIB", "1024,4096");
        let only = std::env::var_os("BLACKOUT_RESTORES_ONLY").is_some();
        for &mib in sizes.iter().filter(|_| !only) {
            for (rate, logged) in [(0, false), (200, false), (200, true)] {
                pauses(mib, rate, logged, runs);
            }
        }
        restores(sizes[0], runs);
    }
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("not measured: the guest of this benchmark is x86 code");
}
