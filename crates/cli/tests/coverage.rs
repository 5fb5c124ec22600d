//! How much of what differs between the bundled captures the ledger explains, and how well predictions hit. Prints its
//! counts; `cargo test -p evenkeel --test coverage -- --nocapture` shows them.

use std::collections::BTreeMap;

use evenkeel_contract::diff::{Class, diff};
use evenkeel_hosts::{BUNDLED, Host, load};

/// The lanes of the lab, with the least number of bundled captures of each.
const LANES: [(&str, usize); 3] = [("svm", 8), ("vmx", 3), ("arm64", 8)];

/// The bundled captures of one lane: of one emulated CPU, so that only kernels differ.
fn hosts(lane: &str) -> Vec<Host> {
    BUNDLED.iter().filter(|b| b.lane() == lane).map(|b| load(b.name).unwrap()).collect()
}

#[test]
fn every_bundled_capture_is_of_a_lane() {
    let lane = |lane| LANES.iter().any(|(name, _)| *name == lane);
    for bundled in BUNDLED {
        assert!(lane(bundled.lane()), "{} is in no pair of the tests below", bundled.name);
    }
    for (lane, least) in LANES {
        assert!(hosts(lane).len() >= least, "{lane}");
    }
}

/// All ordered pairs of one lane: every difference has a cause in the ledger, but for fewer than one in fifty.
fn explained(lane: &str) {
    let hosts = hosts(lane);
    let (mut all, mut left) = (0usize, 0usize);
    let mut unexplained: BTreeMap<(String, String, String), Vec<String>> = BTreeMap::new();
    for o in &hosts {
        for n in hosts.iter().filter(|n| n.name != o.name) {
            for d in diff((&o.surface, &o.views), (&n.surface, &n.views)) {
                // What only a witness can tell has no values to explain; it is counted by the verdicts.
                if d.class == Class::Undetermined {
                    continue;
                }
                all += 1;
                if d.cause.is_none() {
                    left += 1;
                    unexplained
                        .entry((d.subject, d.before, d.after))
                        .or_default()
                        .push(format!("{}→{}", o.name, n.name));
                }
            }
        }
    }
    for ((subject, before, after), pairs) in &unexplained {
        println!(
            "unexplained: {subject}: {before} → {after}, in {} pairs, {} among them",
            pairs.len(),
            pairs[0]
        );
    }
    println!(
        "{lane}: {left} of {all} differences over {} ordered pairs are unexplained",
        hosts.len() * (hosts.len() - 1)
    );
    assert!(all > 100 && left * 50 < all, "{left} of {all}");
}

#[test]
fn differences_between_svm_captures_are_explained() {
    explained("svm");
}

#[test]
fn differences_between_vmx_captures_are_explained() {
    explained("vmx");
}

#[test]
fn differences_between_arm64_captures_are_explained() {
    explained("arm64");
}

#[test]
fn hiding_anything_in_a_bundled_capture_changes_the_diff() {
    let mut hidden = 0;
    for name in ["debian-6.1", "debian-7.3", "debian-7.3-vmx", "debian-7.3-arm64"] {
        let host = load(name).unwrap();
        for (what, other) in hide::all(&host.surface) {
            let views = evenkeel_contract::View::all(&other, "hidden");
            assert!(!diff((&host.surface, &host.views), (&other, &views)).is_empty(), "{name}: {what}");
            hidden += 1;
        }
    }
    println!("{hidden} facets and items were hidden, one at a time");
    assert!(hidden > 1000);
}

#[path = "../../contract/tests/common/hide.rs"]
mod hide;

#[test]
fn every_bundled_host_survives_itself() {
    for bundled in BUNDLED {
        let host = load(bundled.name).unwrap();
        let verdicts = evenkeel_contract::verdict::unpinned(&host.views, &host.views);
        assert!(verdicts.outcome().holds(), "{}", bundled.name);
        assert_eq!(diff((&host.surface, &host.views), (&host.surface, &host.views)), [], "{}", bundled.name);
    }
}

/// Every kernel predicted on the lab's CPU from every other kernel's capture, against what that kernel really showed.
#[test]
fn predictions_hit() {
    for (lane, _) in LANES {
        predictions(lane);
    }
}

fn predictions(lane: &str) {
    let hosts = hosts(lane);
    let (mut words, mut hit, mut undetermined) = (0usize, 0usize, 0usize);
    let mut missed: BTreeMap<String, usize> = BTreeMap::new();
    for real in &hosts {
        for base in hosts.iter().filter(|b| b.name != real.name) {
            let predicted = load(&format!("{}@{}", base.name, real.name)).unwrap();
            let (p, r) = (&predicted.views[0], &real.views[0]);
            for w in p.words.iter() {
                let truth = r.word_or_absent(w.at);
                let care = w.at.mask() & !w.rules().runtime;
                words += 1;
                undetermined += usize::from(w.unknown & care != 0);
                if (w.value ^ truth.value) & care & !w.unknown == 0 {
                    hit += 1;
                } else {
                    *missed.entry(format!("{} under {}", w.at, real.name)).or_default() += 1;
                }
            }
        }
    }
    for (what, times) in &missed {
        println!("missed: {what} ({times} times)");
    }
    println!("{lane}: {hit} of {words} predicted words are right, {undetermined} have undetermined bits");
    assert!(words > 500 && hit * 100 >= words * 98, "{hit} of {words}");
    assert!(
        undetermined * 20 < words,
        "a prediction that says nothing cannot miss: {undetermined} of {words}"
    );
}

/// `6.1.192` of `#1 SMP … Debian 6.1.192-1 (…)`, or of the release.
fn point_release(host: &Host) -> Option<(u32, u32, u32)> {
    let k = &host.surface.provenance.kernel;
    let debian = k.version.split_whitespace().skip_while(|w| *w != "Debian").nth(1);
    numbers(debian.unwrap_or(&k.release))
}

fn numbers(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse().unwrap_or(0));
    Some((parts.next()?, parts.next()?, parts.next().unwrap_or(0)))
}

/// What the ledger holds, and what the captures say of it. The counts are in the README by this command.
#[test]
fn the_ledger_against_the_captures() {
    use evenkeel_catalog::{Arch, CHANGES, Status};
    let mut causes: BTreeMap<&str, std::collections::BTreeSet<String>> = BTreeMap::new();
    // Pairs on one side of an entry's bracket that it explains nevertheless: stable branches do that, and mistakes.
    let mut odd: BTreeMap<&str, String> = BTreeMap::new();
    for (lane, _) in LANES {
        let hosts = hosts(lane);
        for (o, n) in hosts.iter().flat_map(|o| hosts.iter().map(move |n| (o, n))) {
            for d in diff((&o.surface, &o.views), (&n.surface, &n.views)) {
                let Some(cause) = d.cause else { continue };
                causes.entry(cause).or_default().insert(d.subject.clone());
                let change = evenkeel_catalog::change(cause).unwrap();
                let bracket = (numbers(change.kernels.last_without), numbers(change.kernels.first_with));
                if let ((Some(without), Some(with)), (Some(a), Some(b))) =
                    (bracket, (point_release(o), point_release(n)))
                    && change.kernels.stable.is_empty()
                    && ((a <= without && b <= without) || (a >= with && b >= with))
                {
                    odd.entry(cause)
                        .or_insert_with(|| format!("{} between {} and {}", d.subject, o.name, n.name));
                }
            }
        }
    }
    let count = |f: &dyn Fn(&evenkeel_catalog::Change) -> bool| CHANGES.iter().filter(|c| f(c)).count();
    println!(
        "{} entries: {} x86, {} arm64",
        CHANGES.len(),
        count(&|c| c.arch == Arch::X86_64),
        count(&|c| c.arch == Arch::Aarch64)
    );
    println!(
        "told by a probe {}, by an observation {}, not at all {}",
        count(&|c| !c.detect.probe.is_empty()),
        count(&|c| !c.detect.observe.is_empty()),
        count(&|c| !c.detect.undetectable.is_empty())
    );
    println!(
        "selector: available {}, in part {}, not needed {}, none {}",
        count(&|c| c.selector.status == Status::Available),
        count(&|c| c.selector.status == Status::Partial),
        count(&|c| c.selector.status == Status::NotNeeded),
        count(&|c| c.selector.status == Status::None)
    );
    println!("verified by a capture {}, by an observation 0", causes.len());
    for c in CHANGES.iter().filter(|c| c.explains.is_empty() && c.detect.observe.is_empty()) {
        println!("explains nothing: {} {}", c.id, c.title);
    }
    for (id, subjects) in causes.iter().filter(|(_, s)| s.len() > 40) {
        println!("explains {} facets and items: {id}", subjects.len());
    }
    for (id, where_) in &odd {
        println!("explains a difference on one side of its bracket: {id}: {where_}");
    }
    assert!(
        CHANGES.len() >= 150 && causes.len() >= 50,
        "{} entries, {} verified",
        CHANGES.len(),
        causes.len()
    );
}
