//! Boots a real kernel. Skipped, with the reason, where the emulator, the kernel or the static init is missing; where
//! `EVENKEEL_REQUIRE_LAB` is set, that is a failure.

use std::time::Duration;

use evenkeel_lab::{Cache, Error, Exit, Job, Kernel, Options, kernel, run};

/// The kernel that is tested with when none is named in `EVENKEEL_LAB_KERNEL`.
const DEFAULT: &str = "debian-6.12";

/// Why the lab cannot run here, or what is needed to run it.
fn lab() -> Result<(&'static Kernel, Options), Error> {
    let name = std::env::var("EVENKEEL_LAB_KERNEL").unwrap_or_else(|_| DEFAULT.to_owned());
    let kernel = kernel(&name)?;
    let options = Options::new(Cache::locate()?)?;
    options.cache.installed(kernel)?;
    options.binary("evenkeel-lab-init", kernel.arch)?;
    Ok((kernel, options))
}

/// Runs `body` where the lab can run.
fn with_lab(body: impl FnOnce(&'static Kernel, Options)) {
    match lab() {
        Ok((kernel, options)) => body(kernel, options),
        Err(why) if std::env::var_os("EVENKEEL_REQUIRE_LAB").is_some() => panic!("the lab cannot run: {why}"),
        Err(why) => eprintln!("skipped: {why}"),
    }
}

fn emulator_is_missing(error: &Error) -> bool {
    matches!(error, Error::Tool { .. }) && std::env::var_os("EVENKEEL_REQUIRE_LAB").is_none()
}

#[test]
fn a_program_sees_kvm_and_its_files_come_back() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let job =
            Job::new(&binary).arg("look.txt").output("look.txt").output("none.txt").output("/lab/program");
        let output = match run(kernel, &job, &options) {
            Err(error) if emulator_is_missing(&error) => return eprintln!("skipped: {error}"),
            done => done.unwrap_or_else(|error| panic!("{error}")),
        };
        assert_eq!(output.exit, Exit::Code(0), "{output:?}");
        assert_eq!(output.stdout, b"looked\n");
        assert_eq!(output.release, kernel.release);
        let look = String::from_utf8_lossy(&output.files["look.txt"]).into_owned();
        assert!(look.contains("/dev/kvm: opens\n"), "{look}");
        assert!(look.contains("/dev/net/tun: opens\n"), "{look}");
        // Megabytes come back whole.
        assert!(output.files["/lab/program"] == std::fs::read(binary).unwrap());
        assert!(output.missing["none.txt"].contains("No such file"), "{output:?}");
    });
}

#[test]
fn a_program_that_fails_is_no_error_of_the_lab() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let output = match run(kernel, &Job::new(binary), &options) {
            Err(error) if emulator_is_missing(&error) => return eprintln!("skipped: {error}"),
            done => done.unwrap_or_else(|error| panic!("{error}")),
        };
        assert_eq!(output.exit, Exit::Code(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("not a command"));
    });
}

#[test]
fn what_is_no_static_program_is_said() {
    with_lab(|kernel, options| {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("words");
        std::fs::write(&binary, "these are words").unwrap();
        let error = run(kernel, &Job::new(&binary), &options).unwrap_err();
        if emulator_is_missing(&error) {
            return eprintln!("skipped: {error}");
        }
        assert!(
            matches!(&error, Error::Inside { message, .. } if message.contains("static binary")),
            "{error}"
        );
    });
}

#[test]
fn a_host_that_takes_too_long_is_killed() {
    with_lab(|kernel, mut options| {
        options.timeout = Duration::from_millis(400);
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let error = run(kernel, &Job::new(binary), &options).unwrap_err();
        if emulator_is_missing(&error) {
            return eprintln!("skipped: {error}");
        }
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    });
}

#[test]
fn a_kernel_that_panics_is_quoted() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let error = run(kernel, &Job::new(binary).arg("panic"), &options).unwrap_err();
        if emulator_is_missing(&error) {
            return eprintln!("skipped: {error}");
        }
        assert!(matches!(error, Error::Died { .. }), "{error}");
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    });
}
