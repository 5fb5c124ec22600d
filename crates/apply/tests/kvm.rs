//! On this machine's own KVM: what is applied is kept or named, and reading back notices what is altered.
#![cfg(target_arch = "x86_64")]

mod model;

use evenkeel_apply::score::{Noticed, score};
use evenkeel_apply::{Plan, Setup, Verdict, scratch};
use evenkeel_contract::{Coord, View};
use evenkeel_surface::Surface;
use evenkeel_sys::Live;

fn here() -> Surface {
    let options = evenkeel_capture::Options { network: false, ..evenkeel_capture::Options::default() };
    evenkeel_capture::capture(&Live::new(), &options).unwrap()
}

fn own_contract(surface: &Surface) -> evenkeel_contract::Contract {
    let views = View::all(surface, "here");
    let view = views.iter().find(|v| v.shape == "kernel").unwrap();
    evenkeel_contract::baseline::baseline(&[view], "here").contract
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_keeps_its_own_contract_and_a_host_that_lies_is_refused() {
    let surface = here();
    let contract = own_contract(&surface);
    let plan = Plan::new(&contract, &surface, Setup::default()).unwrap();
    let backend = Live::new();
    let tried = scratch(&plan, &backend).unwrap();
    let report = tried.applying.report();
    assert_eq!((report.verdict, report.findings()), (Verdict::Kept, vec![]));

    // A host that stores another table than it was given has to be caught at what it stores otherwise.
    let (mut lied, mut read_back) = (0, 0);
    for stored in &surface.offer.cpuid_stored {
        let given = surface.offer.cpuid.iter().find(|e| (e.leaf, e.subleaf) == (stored.leaf, stored.subleaf));
        let given = given.map_or([0; 4], |e| [e.eax.0, e.ebx.0, e.ecx.0, e.edx.0]);
        let kept = [stored.eax.0, stored.ebx.0, stored.ecx.0, stored.edx.0];
        for (register, (given, kept)) in
            ["eax", "ebx", "ecx", "edx"].into_iter().zip(given.into_iter().zip(kept))
        {
            if given == kept {
                continue;
            }
            let name = format!("cpuid.{:x}.{:x}.{register}", stored.leaf.0, stored.subleaf.0);
            let mut wrong = contract.clone();
            let at = Coord::parse(&name).unwrap();
            wrong.words.retain(|w| w.at != at);
            wrong.words.push(evenkeel_contract::Promise { at, value: given.into(), open: 0 });
            wrong.words.sort_by_key(|w| w.at);
            let plan = Plan::new(&wrong, &surface, Setup::default()).unwrap();
            let report = scratch(&plan, &backend).unwrap().applying.report();
            // An entry of nothing but zeroes is not given at all: then what the capture saw refuses up front.
            assert!(
                report.findings().iter().any(|f| f.starts_with(&name)),
                "{name}: {:?}",
                report.findings()
            );
            assert!(!report.usable);
            read_back += usize::from(report.differences().any(|d| d.facet.starts_with(&name)));
            lied += 1;
        }
    }
    println!("{lied} words are stored otherwise than they are given; reading back shows {read_back}");
    assert!(read_back > 0 || lied == 0);
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_reading_back_notices_what_is_altered() {
    let surface = here();
    let contract = own_contract(&surface);
    let plan = Plan::new(&contract, &surface, Setup::default()).unwrap();
    let score = score(&plan, &|| Box::new(Live::new())).unwrap();
    print!("{}", score.text(false));
    assert!(score.mutations.len() >= 100 && score.percent() >= 95.0, "{}", score.text(false));
    assert!(score.count(Noticed::Noticed) >= 50, "{}", score.text(false));
}
