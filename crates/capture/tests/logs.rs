//! Captures of lab hosts of both architectures, replayed from their logs: no KVM is needed.

mod support;

use evenkeel_capture::capture;
use evenkeel_surface::{Arch, Hex32, Hex64, Surface, Write};
use evenkeel_sys::{Errno, Log, Replaying, System};

const ARM64: &str = include_str!("logs/arm64-6.12.43.jsonl");
const X86: &str = include_str!("logs/x86-5.10.262-svm.jsonl");

fn replay(text: &str) -> (Surface, Log) {
    let log = Log::from_json_lines(text).unwrap();
    let replaying = Replaying::new(log.clone());
    let surface = capture(&replaying, &support::options(&log)).unwrap();
    assert_eq!(replaying.left(), 0, "the log has calls that were not made");
    (surface, log)
}

#[test]
fn an_arm64_host_is_captured_on_any_machine() {
    let (surface, log) = replay(ARM64);
    assert_eq!(surface.arch, Arch::Aarch64);
    let offer = &surface.offer;
    assert_eq!(offer.shapes.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["min", "pmu", "full"]);
    let measured = |name: &str| offer.measured.iter().find(|m| m.facet == name).unwrap();

    // This kernel says yes to a GICD_IIDR of revision 2, and keeps 3.
    let iidr = measured("arm64.vgic.iidr");
    assert_eq!(iidr.value, Hex64(0x4b00_343b));
    assert_eq!(iidr.accepts, [Hex64(0x4b00_343b)]);
    assert_eq!(iidr.refuses, [Hex64(0x4b00_143b), Hex64(0x4b00_243b)]);
    let set = log.entries.iter().filter(|e| e.call == "KVM_SET_DEVICE_ATTR");
    assert_eq!(
        set.filter(|e| e.errno.as_deref() == Some("EINVAL")).count(),
        0,
        "so nothing was refused in words"
    );
    // The revision shows in GICR_CTLR, and the one vCPU's redistributor is the last.
    let redistributor =
        |attr| offer.attributes.iter().find(|a| (a.group, a.attr) == (5, Hex64(attr))).unwrap();
    assert_eq!([0, 8].map(|at| redistributor(at).value), [Some(Hex64(6)), Some(Hex64(0x11))]);
    assert_eq!(measured("arm64.psci.version").value, Hex64(0x1_0001));

    // With the PMU, ID_AA64DFR0_EL1 has another value than without; both are there, in order.
    let dfr0: Vec<_> = offer.registers.iter().filter(|r| r.id == Hex64(0x6030_0000_0013_c028)).collect();
    assert_eq!(dfr0.iter().map(|r| r.shapes.clone()).collect::<Vec<_>>(), [vec![0], vec![1, 2]]);
    assert!(dfr0.iter().all(|r| r.mask.is_some() && r.reset.is_some()));
    assert!(offer.registers.windows(2).all(|r| (r[0].id, &r[0].shapes) < (r[1].id, &r[1].shapes)));
    // Bits of counters that there are not go, whatever is set; what shows a register once more is not tried.
    let registers = |id| offer.registers.iter().filter(move |r| r.id == Hex64(id));
    for (id, mask) in [(0x13_dce1, Some(Hex64(0x8000_003f))), (0x13_dce2, None)] {
        let masks: Vec<_> = registers(0x6030_0000_0000_0000 | id).map(|r| r.mask).collect();
        assert_eq!(masks, [mask], "{id:#x}");
    }
    // Sections bear the catalog's names.
    let items = offer.sections.iter().map(|s| s.item.as_str());
    assert_eq!(items.collect::<Vec<_>>(), ["arm64-mp-state", "arm64-vcpu-events"]);
    assert!(offer.sections.iter().all(|s| evenkeel_catalog::section(&s.item).is_some()));
    // The virtual counter runs.
    let counter = offer.registers.iter().find(|r| r.id == Hex64(0x6030_0000_0013_df1a)).unwrap();
    assert!(counter.running && counter.reset.is_none() && counter.write == Write::Unasked);
}

#[test]
fn an_x86_host_is_captured_on_any_machine() {
    let (surface, _) = replay(X86);
    assert_eq!((surface.arch, surface.provenance.kernel.backend.as_str()), (Arch::X86_64, "kvm_amd"));
    let offer = &surface.offer;
    // Not listed, readable, and not taken back: whoever saves these on a newer kernel cannot come back here.
    for msr in 0x1db..=0x1de {
        let item = offer.msrs.iter().find(|m| m.msr == Hex32(msr)).unwrap();
        assert_eq!((item.listed, item.reset, item.write), (false, Some(Hex64(0)), Write::Refused));
    }
    // KVM stores what it is given here, though it says that it stored as many entries as there was room for.
    assert_eq!(offer.cpuid_stored, []);
    assert!(offer.sections.iter().all(|s| evenkeel_catalog::section(&s.item).is_some()));
    let section = |name: &str| offer.sections.iter().find(|s| s.item == name);
    assert!(section("sregs2").is_none() && section("xsave2").is_none());
    assert_eq!(section("vcpu-events").unwrap().flags, Some(Hex64(0xd)));
    assert_eq!(section("irqchip").unwrap().shapes, [1]);
    assert_eq!(section("nested-state").unwrap().size, Some(4224));
}

#[test]
fn no_failing_call_makes_an_arm64_capture_silently_shorter() {
    let (whole, log) = replay(ARM64);
    let seen = support::fail_in_turn(&whole, &log, support::sample(&log, 37));
    assert!(seen > 100, "only {seen} failures were seen");
}

#[test]
fn no_failing_call_makes_an_x86_capture_silently_shorter() {
    let (whole, log) = replay(X86);
    let seen = support::fail_in_turn(&whole, &log, support::sample(&log, 7));
    assert!(seen > 150, "only {seen} failures were seen");
}

#[test]
fn a_host_without_kvm_is_an_error_with_a_hint() {
    let mut log = Log::from_json_lines(X86).unwrap();
    let open = log.entries.iter_mut().find(|e| e.call == "open").unwrap();
    (open.ret, open.errno) = (None, Some("EACCES".to_owned()));
    let error = capture(&Replaying::new(log.clone()), &support::options(&log)).unwrap_err();
    assert_eq!(error.cause.errno(), Some(Errno::EACCES));
    assert_eq!(error.to_string(), "cannot capture system: open(/dev/kvm): EACCES (13, Permission denied)");
    assert!(error.hint().contains("group"));
}

#[test]
fn a_log_of_something_else_is_an_error_that_names_both_calls() {
    let mut log = Log::from_json_lines(X86).unwrap();
    log.entries.remove(700);
    let error = capture(&Replaying::new(log.clone()), &support::options(&log)).unwrap_err();
    assert!(error.cause.is_off_script());
    let words = error.to_string();
    assert!(words.contains("was asked, but call 701 of the log is"), "{words}");
    let replaying = Replaying::new(log);
    assert!(System::open(&replaying).unwrap_err().is_off_script());
}
