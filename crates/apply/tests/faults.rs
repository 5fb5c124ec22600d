//! Whatever fails or lies on the way: the report names it, and nothing that is half configured counts as usable.

mod model;

use evenkeel_apply::{Plan, Report, Verdict, scratch};
use evenkeel_hosts::Host;
use evenkeel_sys::{Errno, Fault, Faulty, Recording, Rule, When};
use model::{Model, State, contract, everything_selected, host, plan};

/// What became of it, and what the kernel holds then; none when there was no VM at all.
fn spoil(plan: &Plan, host: &Host, n: usize, fault: &Fault) -> (Option<Report>, State, String) {
    let model = Model::of(&host.surface, &plan.contract.shape);
    let state = model.state.clone();
    let rule = Rule { when: When::Nth(n), fault: fault.clone() };
    let faulty = Faulty::new(model, vec![rule]);
    let report = scratch(plan, &faulty).ok().map(|tried| tried.applying.report());
    let (_, name) = faulty.spoiled().pop().expect("the call is made");
    let state = state.lock().unwrap().clone();
    (report, state, name)
}

/// How many calls there are, which of them are spoiled, and what is in force when none is: the first five of each name,
/// and one in so many of the rest, because an arm64 host has hundreds of registers that are all treated alike.
fn calls(plan: &Plan, host: &Host) -> (Vec<usize>, State) {
    let model = Model::of(&host.surface, &plan.contract.shape);
    let state = model.state.clone();
    let recording = Recording::new(model);
    let report = scratch(plan, &recording).unwrap().applying.report();
    assert_eq!((report.verdict, report.findings()), (Verdict::Kept, vec![]));
    let state = state.lock().unwrap().clone();
    let mut seen: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    let entries = recording.into_log().entries;
    let chosen = entries.iter().enumerate().filter(|(n, entry)| {
        let count = seen.entry(entry.call.clone()).or_default();
        *count += 1;
        *count <= 5 || n % 29 == 0
    });
    (chosen.map(|(n, _)| n).collect(), state)
}

/// Each call of the whole fails, is lost or lies, in turn. Returns how many were spoiled, and how many lies nothing
/// could notice.
fn in_turn(plan: &Plan, host: &Host) -> (usize, usize) {
    let (chosen, truth) = calls(plan, host);
    let (mut spoiled, mut blind) = (0, 0);
    for fault in [Fault::Fail(Errno::EIO), Fault::Lose(Errno::EIO), Fault::Lie] {
        for &n in &chosen {
            let (report, state, name) = spoil(plan, host, n, &fault);
            spoiled += 1;
            let Some(report) = report else { continue };
            let what = format!("{fault:?} of call {n}, {name}");
            if report.usable && state != truth {
                // Only what nothing can read back may go unnoticed, and only when the kernel lies.
                assert!(matches!(fault, Fault::Lie), "{what}: usable, and something else is in force");
                let write_only = name == "KVM_ENABLE_CAP" && report.unseen.iter().any(|u| u.selected);
                let silent = name == "KVM_SET_DEVICE_ATTR" || name.starts_with("KVM_ARM_VCPU_");
                assert!(write_only || silent, "{what}: usable, and something else is in force");
                blind += 1;
                continue;
            }
            if !report.usable {
                let named = report.differences().any(|d| d.call.contains(&name) || !d.facet.is_empty());
                assert!(named && !report.findings().is_empty(), "{what}: {report:#?}");
                if !matches!(fault, Fault::Lie) {
                    let told = report.steps.iter().flat_map(|s| s.failed.iter().map(String::as_str));
                    let told =
                        told.chain(report.differences().map(|d| d.call.as_str())).any(|t| t.contains(&name));
                    assert!(told, "{what}: the call is not named");
                }
            }
        }
    }
    (spoiled, blind)
}

#[test]
fn no_failure_of_an_x86_host_goes_by() {
    let (old, new) = (host("debian-6.1"), host("debian-7.3"));
    for shape in ["kernel", "split", "none"] {
        let contract = contract(&[&old, &new], shape);
        let (spoiled, blind) = in_turn(&plan(&contract, &new, 2), &new);
        println!("{shape}: {spoiled} spoiled calls, {blind} lies that nothing shows");
        // A split irqchip is all that is enabled, and the APIC shows whether it is there.
        assert!(spoiled >= 30 && blind == 0, "{shape}: {spoiled}, {blind}");
    }
}

#[test]
fn no_failure_goes_by_when_everything_is_selected() {
    let new = host("debian-7.3");
    let contract = everything_selected(&contract(&[&new], "split"), &new);
    let plan = plan(&contract, &new, 2);
    let (spoiled, blind) = in_turn(&plan, &new);
    println!("everything selected: {spoiled} spoiled calls, {blind} lies that nothing shows");
    assert!(spoiled >= 60, "{spoiled}");
}

#[test]
fn no_failure_of_an_arm64_host_goes_by() {
    let (old, new) = (host("debian-6.12-arm64"), host("debian-7.3-arm64"));
    let contract = contract(&[&old, &new], "pmu");
    let (spoiled, blind) = in_turn(&plan(&contract, &new, 1), &new);
    println!("arm64: {spoiled} spoiled calls, {blind} lies that nothing shows");
    assert!(spoiled >= 60, "{spoiled}");
}
