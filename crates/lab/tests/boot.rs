//! Boots a real kernel. Ignored unless `EVENKEEL_REQUIRE_LAB` is set; then whatever is missing is a failure.

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

/// Runs `body` in the lab.
fn with_lab(body: impl FnOnce(&'static Kernel, Options)) {
    let (kernel, options) = lab().unwrap_or_else(|why| panic!("the lab cannot run: {why}"));
    body(kernel, options);
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_program_sees_kvm_and_its_files_come_back() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let job =
            Job::new(&binary).arg("look.txt").output("look.txt").output("none.txt").output("/lab/program");
        let output = run(kernel, &job, &options).unwrap_or_else(|error| panic!("{error}"));
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

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_program_that_fails_is_no_error_of_the_lab() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let output = run(kernel, &Job::new(binary), &options).unwrap_or_else(|error| panic!("{error}"));
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
    with_lab(|kernel, options| {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("words");
        std::fs::write(&binary, "these are words").unwrap();
        let error = run(kernel, &Job::new(&binary), &options).unwrap_err();
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
    with_lab(|kernel, mut options| {
        options.timeout = Duration::from_millis(400);
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let error = run(kernel, &Job::new(binary), &options).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    });
}

#[cfg_attr(
    not(lab),
    ignore = "boots a kernel: `cargo xtask cross && evenkeel lab fetch`, then set EVENKEEL_REQUIRE_LAB"
)]
#[test]
fn a_kernel_that_panics_is_quoted() {
    with_lab(|kernel, options| {
        let binary = options.binary("evenkeel-lab-init", kernel.arch).unwrap();
        let error = run(kernel, &Job::new(binary).arg("panic"), &options).unwrap_err();
        assert!(matches!(error, Error::Died { .. }), "{error}");
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    });
}
