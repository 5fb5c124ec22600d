//! `cargo bench -p evenkeel-state`: saving and setting the state of a VM, each beside a replay by bare ioctl(2) of exactly the
//! requests that it made, in one run. Prints a table; decides nothing. On a shared machine only the ratios mean much.

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::time::{Duration, Instant};

    use evenkeel_catalog::Arch;
    use evenkeel_monitor::{Irqchip, Machine, Shape};
    use evenkeel_state::order::{Order, Phase};
    use evenkeel_state::{Cpu, Manifest, Parts, x86};
    use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
    use evenkeel_sys::{Bare, Live, Recording, System, Vcpu};

    /// Least and median of work and floor, by turns, so that whatever else runs here slows both.
    fn beside(runs: usize, mut work: impl FnMut(), mut floor: impl FnMut()) -> [(Duration, Duration); 2] {
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (times, n) in all.iter_mut().zip(0..) {
                let begin = Instant::now();
                if n == 0 {
                    work()
                } else {
                    floor()
                }
                times.push(begin.elapsed());
            }
        }
        all.map(|mut times| {
            times.sort();
            (times[0], times[times.len() / 2])
        })
    }

    fn row(what: &str, calls: usize, [work, floor]: [(Duration, Duration); 2]) {
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        println!(
            "{what:<28} {:>10.1} µs {:>10.1} µs   bare, {calls} requests {:>10.1} µs {:>10.1} µs   ratio {:.2} (least {:.2})",
            work.0.as_secs_f64() * 1e6,
            work.1.as_secs_f64() * 1e6,
            floor.0.as_secs_f64() * 1e6,
            floor.1.as_secs_f64() * 1e6,
            ratio(work.1, floor.1),
            ratio(work.0, floor.0),
        );
    }

    pub fn main() {
        if !std::path::Path::new("/dev/kvm").exists() {
            println!("not measured: there is no /dev/kvm here");
            return;
        }
        println!("{:<28} {:>13} {:>13}", "", "least", "median");
        for cpus in [1, 4] {
            one(cpus);
        }
    }

    fn one(cpus: u64) {
        let recording = Recording::new(Live::new());
        let system = System::open(&recording).expect("/dev/kvm opens");
        let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: 4 << 20 };
        let machine = Machine::new(&system, shape).expect("a machine");
        let vcpus: Vec<Vcpu<'_>> = (0..cpus).map(|n| machine.vcpu(n).expect("a vCPU")).collect();
        let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).expect("CPUID");
        vcpus.iter().for_each(|vcpu| vcpu.set_cpuid(&cpuid).expect("CPUID is taken"));
        let mut parts = Parts::new(&system, machine.vm(), vcpus.iter().map(Cpu::still).collect());
        let host = x86::Host::ask(&parts).expect("the kernel tells");
        let order = |phase| Order::catalogued(Arch::X86_64, phase);
        let manifest = Manifest::default();
        let save = |parts: &mut Parts<'_, '_>| {
            x86::save_with(parts, &manifest, &host, order(Phase::Save)).expect("it is saved").image
        };
        let set = |parts: &mut Parts<'_, '_>, image: &_| {
            let options = x86::Options { unverified: true, ..x86::Options::default() };
            x86::restore_with(parts, image, &options, &host, order(Phase::Restore)).expect("it is set");
        };
        recording.forget();
        let image = save(&mut parts);
        let log = recording.log();
        let mut bare = Bare::new(recording.inner(), &log).expect("the same requests");
        recording.pause(true);
        let failing = bare.run();
        row(
            &format!("save, {cpus} vCPUs"),
            bare.len(),
            beside(400, || drop(save(&mut parts)), || assert_eq!(bare.run(), failing)),
        );
        recording.pause(false);
        recording.forget();
        set(&mut parts, &image);
        let log = recording.log();
        let mut bare = Bare::new(recording.inner(), &log).expect("the same requests");
        recording.pause(true);
        let failing = bare.run();
        row(
            &format!("set, {cpus} vCPUs"),
            bare.len(),
            beside(400, || set(&mut parts, &image), || assert_eq!(bare.run(), failing)),
        );
    }
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86::main();
}
