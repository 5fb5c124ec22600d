//! Boots a real kernel. Ignored unless `EVENKEEL_REQUIRE_LAB` is set; then whatever is missing is a failure.

use std::time::Duration;

use evenkeel_lab::{Cache, Error, Exit, Host, Job, Machine, Options, host, kernels, run, run_pair};

/// The kernel that is tested with when none is named in `EVENKEEL_LAB_KERNEL`.
const DEFAULT: &str = "debian-6.12";

/// Why the lab cannot run here, or what is needed to run it.
fn lab() -> Result<(Host, Options), Error> {
    let name = std::env::var("EVENKEEL_LAB_KERNEL").unwrap_or_else(|_| DEFAULT.to_owned());
    let host = host(&name, kernels())?;
    let options = Options::new(Cache::locate()?)?;
    options.cache.installed(&host.kernel)?;
    options.binary("evenkeel-lab-init", host.kernel.arch)?;
    Ok((host, options))
}

/// Runs `body` in the lab.
fn with_lab(body: impl FnOnce(&Host, Options)) {
    let (host, options) = lab().unwrap_or_else(|why| panic!("the lab cannot run: {why}"));
    body(&host, options);
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_program_sees_kvm_and_its_files_come_back() {
    with_lab(|host, options| {
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let job =
            Job::new(&binary).arg("look.txt").output("look.txt").output("none.txt").output("/lab/program");
        let run = run(host, &job, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((run.release.as_str(), &run.afterwards), (host.kernel.release.as_str(), &None));
        let output = run.output;
        assert_eq!(output.exit, Exit::Code(0), "{output:?}");
        assert_eq!(output.stdout, b"looked\n");
        let look = String::from_utf8_lossy(&output.files["look.txt"]).into_owned();
        assert!(look.contains("/dev/kvm: opens\n"), "{look}");
        assert!(look.contains("/dev/net/tun: opens\n"), "{look}");
        // Megabytes come back whole.
        assert!(output.files["/lab/program"] == std::fs::read(binary).unwrap());
        assert!(output.missing["none.txt"].contains("No such file"), "{output:?}");
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_program_that_fails_is_no_error_of_the_lab() {
    with_lab(|host, options| {
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let output = run(host, &Job::new(binary), &options).unwrap_or_else(|error| panic!("{error}")).output;
        assert_eq!(output.exit, Exit::Code(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("not a command"));
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn what_is_no_static_program_is_said() {
    with_lab(|host, options| {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("words");
        std::fs::write(&binary, "these are words").unwrap();
        let error = run(host, &Job::new(&binary), &options).unwrap_err();
        assert!(
            matches!(&error, Error::Inside { message, .. } if message.contains("static binary")),
            "{error}"
        );
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_host_that_takes_too_long_is_killed() {
    with_lab(|host, mut options| {
        options.timeout = Some(Duration::from_millis(400));
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let error = run(host, &Job::new(binary), &options).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_kernel_that_panics_is_quoted() {
    with_lab(|host, options| {
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let error = run(host, &Job::new(binary).arg("panic"), &options).unwrap_err();
        assert!(matches!(error, Error::Died { .. }), "{error}");
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_host_takes_one_job_after_another() {
    with_lab(|host, options| {
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let mut machine = Machine::up(host, &options).unwrap_or_else(|error| panic!("{error}"));
        let first = machine.run(&Job::new(&binary).arg("a").input("b/c", "kept?").output("a").output("b/c"));
        let first = first.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(first.files["b/c"], b"kept?");
        // The second job finds nothing of the first.
        let second = machine.run(&Job::new(&binary).output("a").output("b/c")).unwrap();
        assert_eq!((second.exit, second.missing.len()), (Exit::Code(2), 2));
        // One that cannot be started does not take the host down.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("words"), "these are words").unwrap();
        assert!(machine.run(&Job::new(folder.path().join("words"))).is_err());
        assert_eq!(machine.run(&Job::new(&binary).arg("a")).unwrap().exit, Exit::Code(0));
        machine.off().unwrap_or_else(|error| panic!("{error}"));
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_stream_passes_between_programs_on_two_hosts() {
    with_lab(|host, options| {
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        // More than any buffer on the way holds, and no two parts alike.
        let text: Vec<u8> =
            (0..16_u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let send = Job::new(&binary).arg("send").input("text", text.clone());
        let receive = Job::new(&binary).arg("receive").output("text");
        let [sent, received] = run_pair((host, &send), (host, &receive), &options);
        let sent = sent.unwrap_or_else(|error| panic!("{error}")).output;
        assert_eq!(sent.exit, Exit::Code(0), "{}", String::from_utf8_lossy(&sent.stderr));
        let received = received.unwrap_or_else(|error| panic!("{error}")).output;
        assert_eq!(received.exit, Exit::Code(0), "{}", String::from_utf8_lossy(&received.stderr));
        assert!(received.files["text"] == text, "the text came through changed");
        println!("64 MiB over the link in {:.1} s, with the way in and out", received.took.as_secs_f64());
        // One that ends without a word is noticed by the other.
        let [gone, alone] = run_pair((host, &Job::new(&binary).arg("a")), (host, &receive), &options);
        assert_eq!(gone.unwrap().output.exit, Exit::Code(0));
        assert_eq!(alone.unwrap_or_else(|error| panic!("{error}")).output.exit, Exit::Code(2));
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_kept_host_is_resumed_and_a_damaged_one_is_booted() {
    with_lab(|host, options| {
        if !host.lane.resumable() {
            println!("hosts of the lane {} are always booted", host.lane);
            return;
        }
        // A cache of its own, with the real one's kernels.
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(options.cache.root().join("kernels"), folder.path().join("kernels"))
            .unwrap();
        let options = Options { cache: Cache::at(folder.path()), ..options };
        let up = || Machine::up(host, &options).unwrap_or_else(|error| panic!("{error}"));
        let binary = options.binary("evenkeel-lab-init", host.kernel.arch).unwrap();
        let job = Job::new(&binary).arg("a");
        let first = up();
        assert!(!first.resumed);
        first.off().unwrap();
        let mut second = up();
        assert!(second.resumed);
        assert_eq!(second.release(), host.kernel.release);
        assert_eq!(second.run(&job).unwrap().exit, Exit::Code(0));
        second.off().unwrap();
        let kept: Vec<_> = std::fs::read_dir(folder.path().join("idle")).unwrap().flatten().collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        let state = std::fs::read(kept[0].path()).unwrap();
        std::fs::write(kept[0].path(), &state[..state.len() / 2]).unwrap();
        let mut third = up();
        assert!(!third.resumed);
        assert_eq!(third.run(&job).unwrap().exit, Exit::Code(0));
        third.off().unwrap();
        let fresh = Options { fresh: true, ..options.clone() };
        assert!(!Machine::up(host, &fresh).unwrap().resumed);
    });
}
